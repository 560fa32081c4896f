"""Which process does something, and whether it still lives.

In: nothing, or the token of a process. Out: a token that no later process shares, or an answer.
"""

import os

import psutil


def process_token() -> str:
    """Return a name of this process that a later one with the same number does not share."""
    return f"{os.uname().nodename}:{os.getpid()}:{psutil.Process().create_time():.3f}"


def is_alive(token: str) -> bool:
    """Tell whether the process of a token still runs; one on another machine is taken to be alive.

    A process that ended and was not yet waited for counts as dead. Start times are compared to two seconds, because they are
    counted from the time of the machine's start, which moves when its clock is set.
    """
    node, pid, started = token.rsplit(":", 2)
    if node != os.uname().nodename:
        return True
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(started)) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
