"""How cores are shared: an operator's own choice stands, and what computes in the background gives way to everything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conversations import cores
from conversations.cores import spinning_briefly, usable_cores

AUTOGROUP = Path("/proc/self/autogroup")
GIVES_WAY = """
import os
from pathlib import Path
from conversations.cores import give_way
give_way(15)
group = Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), *(group.read_text().split()[-1:] if group.exists() else ()))
"""


@pytest.mark.parametrize("chosen", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_operator_has_chosen_stands(chosen: str) -> None:
    assert spinning_briefly({"PATH": "/bin"}, 7) == {"PATH": "/bin", "GOMP_SPINCOUNT": "7"}
    assert spinning_briefly({chosen: "active"}, 7) == {chosen: "active"}


@pytest.mark.parametrize("leads_its_session", [True, False])
def test_process_gives_way_and_takes_its_session_along_only_where_it_leads_it(leads_its_session: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GIVES_WAY],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=leads_its_session,
    )
    priority, *of_session = done.stdout.split()
    assert priority == "15"
    # Empty where the system has the file and puts no session into a group of its own.
    if AUTOGROUP.exists() and AUTOGROUP.read_text(encoding="ascii") and os.getsid(0) != os.getpid():
        assert of_session == (["15"] if leads_its_session else AUTOGROUP.read_text(encoding="ascii").split()[-1:])


@pytest.mark.parametrize(
    ("quota", "cores_of_seven"), [("max 100000", 7), ("250000 100000", 3), ("1000 100000", 1), ("no numbers", 7), (None, 7)]
)
def test_container_with_less_time_counts_as_fewer_cores(
    quota: str | None, cores_of_seven: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setattr(cores, "_CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota, encoding="ascii")
    assert usable_cores() == cores_of_seven
