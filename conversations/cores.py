"""How processes share a machine's cores: customers wait for the student's server, and long computations give way to it.

In: an environment. Out: one in which threads that wait for one another give their core away soon. OpenMP's threads spin at every
meeting before they sleep, by default for so long (GCC's libgomp, `GOMP_SPINCOUNT`: 300,000 turns and more) that two processes on the
same cores wait for each other's waiting: measured on 2 cores, two trainings side by side came to a fortieth of their speed.
`make bench SUBJECT=beside` measures what the counts here are chosen from.
"""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# Long enough for a server's many short meetings in each token, short enough to let others in.
SERVER_SPINS = 5000
BACKGROUND_SPINS = 1000
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def spinning_briefly(environment: Mapping[str, str], spins: int) -> dict[str, str]:
    """Return an environment in which waiting threads spin for so many turns, unless whoever runs the product has chosen already.

    It must stand before a process loads a library that computes.
    """
    chosen = "GOMP_SPINCOUNT" in environment or "OMP_WAIT_POLICY" in environment
    return dict(environment) if chosen else {**environment, "GOMP_SPINCOUNT": str(spins)}


def give_way(nice: int) -> None:
    """Lower the priority of this process, and of all that it starts, by so much (0 to 19, as `nice` counts). There is no way back.

    Linux shares cores between sessions before it looks at processes, where `sched_autogroup` is on: one that leads its session
    gives way with the whole of it, and another does not lower what it shares a terminal with.
    """
    lowered = os.nice(nice)
    if os.getsid(0) == os.getpid():
        # Not there on every system, and a matter of speed alone.
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(lowered), encoding="ascii")


def usable_cores() -> int:
    """Return how many cores this process may use: those that it is bound to, or fewer where its container gets less time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # The quota of a container under cgroup v2: microseconds of computing in each period, or "max".
    with suppress(OSError, ValueError):
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)
