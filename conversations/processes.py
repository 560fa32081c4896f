"""Which process does something, and whether it still lives.

In: nothing, or the token of a process. Out: a token that no later process shares, or an answer. Nobody can look into another
machine: a process there lives as long as it is heard of, where it is heard of at all.
"""

import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import psutil

from conversations.messages import utc_text

SECONDS_BETWEEN_BEATS = 5.0
# Many beats long, so that a slow disk is not taken for a death. The clocks of the machines must agree better than this.
SILENT_SECONDS = 120.0


def process_token(pid: int | None = None) -> str:
    """Return a name of this process, or of another one here, that a later one with the same number does not share."""
    return _token_of(pid or os.getpid())


@lru_cache(maxsize=4)
def _token_of(pid: int) -> str:
    """Look once: the start of a process is counted from the machine's own, which moves when its clock is set."""
    return f"{os.uname().nodename}:{pid}:{psutil.Process(pid).create_time():.3f}"


def is_alive(token: str, *, heard_at_utc: str | None = None) -> bool:
    """Tell whether the process of a token still runs.

    One on another machine is alive where it was heard of in the last SILENT_SECONDS, and taken to be where nobody hears of it. A
    process that ended and was not yet waited for counts as dead. Start times are compared to two seconds, because they are counted
    from the time of the machine's start, which moves when its clock is set.
    """
    node, pid, started = token.rsplit(":", 2)
    if node != os.uname().nodename:
        return heard_at_utc is None or heard_at_utc > utc_text(datetime.now(UTC) - timedelta(seconds=SILENT_SECONDS))
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(started)) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
