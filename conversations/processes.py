"""Which process does something, and whether it still lives.

In: nothing, or the token of a process. Out: a token that no later process shares, or an answer. Nobody can look into another
machine: a process there lives as long as it is heard of, where it is heard of at all.
"""

import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import psutil

from conversations.messages import utc_text

SECONDS_BETWEEN_BEATS = 5.0
# Many beats long, so that a slow disk is not taken for a death. The clocks of the machines must agree better than this.
SILENT_SECONDS = 120.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_token(pid: int | None = None) -> str:
    """Return a name of this process, or of another one here, that a later one with the same number does not share."""
    return _token_of(pid or os.getpid())


@lru_cache(maxsize=4)
def _token_of(pid: int) -> str:
    """Look once: off Linux the start of a process is counted from the machine's own, which moves when its clock is set."""
    return f"{os.uname().nodename}:{pid}:{_start_in_boot(pid) or f'{psutil.Process(pid).create_time():.3f}'}"


def _start_in_boot(pid: int) -> str:
    """Return which start of the machine a process belongs to and its start in clock ticks since then, which no set clock moves.

    "" where the system is not Linux. Raises psutil.NoSuchProcess. Source: proc_pid_stat(5), field 22.
    """
    if not _BOOT_ID.is_file():
        return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    # The second field is the program's own name in parentheses, which may hold spaces and parentheses; the third comes after the last.
    ticks = stat.rpartition(b")")[2].split()[22 - 3].decode()
    return f"{_BOOT_ID.read_text(encoding='ascii').strip()}/{ticks}"


def is_alive(token: str, *, heard_at_utc: str | None = None) -> bool:
    """Tell whether the process of a token still runs.

    One on another machine is alive where it was heard of in the last SILENT_SECONDS, and taken to be where nobody hears of it. A
    process that ended and was not yet waited for counts as dead. Starts that are times, as off Linux and in tokens of earlier
    versions, are compared to two seconds, because the time of the machine's start moves when its clock is set.
    """
    node, pid, started = token.rsplit(":", 2)
    if node != os.uname().nodename:
        return heard_at_utc is None or heard_at_utc > utc_text(datetime.now(UTC) - timedelta(seconds=SILENT_SECONDS))
    try:
        process = psutil.Process(int(pid))
        same = _start_in_boot(process.pid) == started if "/" in started else abs(process.create_time() - float(started)) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
