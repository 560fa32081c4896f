"""What a server takes: the resident memory of its processes, and what they hold of a GPU.

In: a process. Out: bytes, or None where nobody can tell. Changes nothing.
"""

import shutil
import subprocess
from dataclasses import dataclass

import psutil

_MIB = 1024 * 1024
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Memory:
    """What a process and all that it started take, in bytes. None: nobody can tell."""

    resident_bytes: int | None = None
    gpu_bytes: int | None = None


def memory_of(process_id: int) -> Memory:
    """Return what a process and its children take; a page that several of them share is counted once, where Linux tells."""
    try:
        parent = psutil.Process(process_id)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return Memory()
    resident = sum(_share_of_memory(process) for process in family)
    return Memory(resident or None, _gpu_bytes({process.pid for process in family}))


def _share_of_memory(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0
    return int(getattr(memory, "pss", memory.rss))


def _gpu_bytes(process_ids: set[int]) -> int | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    try:
        told = subprocess.run(
            [command, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return gpu_bytes_in(told.stdout, process_ids)


def gpu_bytes_in(table: str, process_ids: set[int]) -> int | None:
    """Return what some processes hold of all GPUs, by nvidia-smi's table of `pid, MiB`; None where it names none of them.

    In a container the table can name the host's processes, or none at all.
    """
    found = []
    for line in table.splitlines():
        process_id, _, used = line.partition(",")
        if process_id.strip().isdecimal() and int(process_id) in process_ids and used.strip().isdecimal():
            found.append(int(used) * _MIB)
    return sum(found) if found else None
