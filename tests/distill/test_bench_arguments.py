"""A benchmark says what is wrong with its arguments at once, before it loads or trains anything."""

import subprocess
import sys

import pytest

# What a process that reads arguments must not have loaded by then.
HEAVY = {"torch", "transformers", "peft"}
READING = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    print(sorted({heavy} & set(sys.modules)), ended.code)
"""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--cases", "nope"], "argument --cases: invalid choice: 'nope'"),
        (
            ["train", "--cases", "ours, tree, twice computed"],
            "--cases: 'ours, tree, twice computed' is measured on a GPU alone",
        ),
        (["train", "--model", "/nonexistent"], "argument --model: there is no folder '/nonexistent'"),
        (["train", "--rounds", "0"], "argument --rounds: '0' is no whole number above 0"),
        (["study", "show", "--data", "/nonexistent"], "--data: there is no study.json in '/nonexistent'"),
        (["study", "--seeds", "0"], "argument --seeds: '0' is no whole number above 0"),
        (["merged", "--rows", "/nonexistent"], "argument --rows: there is no folder '/nonexistent'"),
        (["merged", "--taught", "/"], "argument --taught: there is no adapter, merged in '/'"),
    ],
)
def test_a_bad_argument_of_a_benchmark_is_told_before_libraries_are_loaded(arguments: list[str], told: str) -> None:
    name, *rest = arguments
    code = READING.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code, f"tests.bench.{name}", *rest], capture_output=True, text=True, check=False
    )
    assert told in " ".join(done.stderr.split())
    assert done.stdout.strip() == "[] 2"
