"""Whose a token is: of one process alone, whatever happens to the machine's clock."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from conversations.processes import is_alive, process_token

ON_LINUX = pytest.mark.skipif(not psutil.LINUX, reason="only Linux counts starts without the clock")


def as_before(pid: int) -> str:
    """The token that earlier versions gave a process, and that other systems than Linux still give it."""
    return f"{os.uname().nodename}:{pid}:{psutil.Process(pid).create_time():.3f}"


@ON_LINUX
def test_a_process_lives_on_when_the_clock_of_its_machine_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    token, before, started = process_token(), as_before(os.getpid()), psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: started + 3600)
    assert is_alive(token) and not is_alive(before)


@ON_LINUX
def test_a_program_may_have_spaces_and_parentheses_in_its_name(tmp_path: Path) -> None:
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "a) 1 (b")
    with subprocess.Popen([program, "60"]) as process:
        try:
            token = process_token(process.pid)
            since_start = psutil.Process(process.pid).create_time() - psutil.boot_time()
            assert int(token.rpartition("/")[2]) / os.sysconf("SC_CLK_TCK") == pytest.approx(since_start, abs=0.02)
            assert is_alive(token)
        finally:
            process.kill()
    assert not is_alive(token)
    with pytest.raises(psutil.NoSuchProcess):
        process_token(2**22 + 1)


@ON_LINUX
def test_a_process_of_an_earlier_start_of_the_machine_is_dead() -> None:
    token = process_token()
    assert not is_alive(f"{token.rsplit(':', 1)[0]}:00000000-0000-0000-0000-000000000000/{token.rpartition('/')[2]}")


def test_a_token_of_an_earlier_version_is_still_read() -> None:
    token = as_before(os.getpid())
    assert is_alive(token) and not is_alive(token.rsplit(":", 1)[0] + ":1.000")
