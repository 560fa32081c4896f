"""Promises of measuring what a server takes."""

import subprocess
import sys

import psutil

from support_bot.memory import gpu_bytes_in, memory_of

MIB = 1024 * 1024
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(b'x') * (60 << 20); print('ready', flush=True); input()"])
child.wait()
"""


def test_the_memory_of_a_server_counts_the_processes_that_it_started() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        alone = psutil.Process(parent.pid).memory_info().rss
        measured = memory_of(parent.pid).resident_bytes
        assert measured is not None and 60 * MIB <= measured < alone + 120 * MIB
        parent.communicate("go\n", timeout=20)


def test_a_process_that_has_ended_takes_nothing_that_anybody_could_tell() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert memory_of(ended.pid).resident_bytes is None


def test_the_memory_on_gpus_is_that_of_the_servers_own_processes() -> None:
    table = "101, 1000\n102, 24\n103, 7\n104, [N/A]\n"
    assert gpu_bytes_in(table, {101, 102, 104, 105}) == 1024 * MIB
    assert gpu_bytes_in(table, {105}) is None
    assert gpu_bytes_in("", {101}) is None
