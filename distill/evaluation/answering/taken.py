"""What serving a model takes: memory of the server's processes, of its GPU, weights on disk, turns an hour.

In: a contestant and how fast it answered. Out: figures for `taken.json`; what cannot be seen from here is null.
"""

from pathlib import Path

import psutil

from conversations import releases
from conversations.messages import Json
from conversations.releases import ReleaseKind, StudentServer
from distill.evaluation.answering.asking import Together
from distill.evaluation.answering.contestants import Contestant
from distill.run import Run


def taken_by(run: Run, each: Contestant, together: Together) -> dict[str, Json]:
    """Return what serving a contestant takes. Memory is as the server's supervisor says, else as it is seen from here."""
    server = _now(run, each.server)
    memory = server.memory_bytes if server.memory_bytes is not None else resident_bytes(server.process_id)
    return {
        "release_id": each.release_id,
        "memory_bytes": memory,
        "gpu_memory_bytes": server.gpu_memory_bytes,
        "weights_bytes": weights_bytes_of(run, each.release_id),
        "turns_together": together.turns,
        "seconds_together": round(together.seconds, 3),
        "concurrency": run.settings.evaluate.concurrency,
        "server_usd_per_hour": run.settings.evaluate.server_usd_per_hour,
    }


def _now(run: Run, server: StudentServer) -> StudentServer:
    """Return a server as it was seen last: it takes more memory when it has answered than when it began."""
    return next((each for each in releases.servers(run.record) if each.server_id == server.server_id), server)


def weights_bytes_of(run: Run, release_id: str) -> int:
    """Return the bytes of all weights that serving a release needs: an adapter needs its base too."""
    base = weights_bytes(run.settings.student.base)
    release = releases.release(run.record, release_id)
    match release.kind:
        case ReleaseKind.BASE:
            return base
        case ReleaseKind.LORA:
            return base + weights_bytes(Path(release.weights_path))
        case ReleaseKind.MERGED | ReleaseKind.FULL:
            return weights_bytes(Path(release.weights_path))


def weights_bytes(folder: Path) -> int:
    """Return the bytes of a folder's weights on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def resident_bytes(process_id: int | None) -> int | None:
    """Return the resident memory of a process and its children (shared pages once for each, proportionally where known).

    None where the process is gone, runs elsewhere or may not be looked at.
    """
    if process_id is None:
        return None
    try:
        parent = psutil.Process(process_id)
        return sum(_share_of_memory(process) for process in [parent, *parent.children(recursive=True)]) or None
    except psutil.NoSuchProcess:
        return None


def _share_of_memory(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return 0
    return int(getattr(memory, "pss", memory.rss))
