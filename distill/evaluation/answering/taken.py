"""What serving a model takes: memory of the server's processes, of its GPU, weights on disk, turns an hour.

In: a contestant and how fast it answered. Out: figures for `taken.json`; what nobody has measured is null.
"""

from pathlib import Path

from conversations import releases
from conversations.messages import Json
from conversations.releases import ReleaseKind, StudentServer
from distill.evaluation.answering.asking import Together
from distill.evaluation.answering.contestants import Contestant
from distill.run import Run


def taken_by(run: Run, each: Contestant, together: Together) -> dict[str, Json]:
    """Return what serving a contestant takes. Memory is as the server's supervisor says, who may be on another machine."""
    server = _now(run, each.server)
    return {
        "release_id": each.release_id,
        "memory_bytes": server.memory_bytes,
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
