"""How cores are shared: an operator's own choice stands, and what computes in the background gives way to everything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conversations.cores import spinning_briefly

AUTOGROUP = Path("/proc/self/autogroup")
GIVES_WAY = """
import os
from pathlib import Path
from conversations.cores import give_way
give_way()
group = Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text().split()[-1] if group.exists() else "")
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
    assert priority == "19"
    if AUTOGROUP.exists() and os.getsid(0) != os.getpid():
        assert of_session == (["19"] if leads_its_session else AUTOGROUP.read_text(encoding="ascii").split()[-1:])
