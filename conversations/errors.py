"""The three kinds of failure that a command reports, by who must act.

    Failure
    ├── OperatorError   settings, data or command must be mended   exit code 2
    ├── OutsideError    teacher, vLLM or disk failed, try later    exit code 3
    └── Refused         a gate said no, working as designed        exit code 4

Anything else is a bug of ours: it keeps its traceback and exits with 1.
"""

from collections.abc import Callable
from typing import NoReturn

from rich.console import Console


class Failure(Exception):
    """Base of the failures that are reported in one sentence instead of a traceback."""

    exit_code = 1


class OperatorError(Failure):
    """Settings, data or the command itself must be mended by the person who runs it."""

    exit_code = 2


class OutsideError(Failure):
    """Something outside this program failed; the same command may succeed later."""

    exit_code = 3


class Refused(Failure):
    """A gate refused, as designed; the message names the gate and the number."""

    exit_code = 4


def run_command(command: Callable[[], object]) -> NoReturn:
    """Run a command's entry point and turn each known failure into one message and its exit code."""
    try:
        command()
    except Failure as failure:
        Console(emoji=False, stderr=True, soft_wrap=True).print(f"error: {failure}", style="bold red", markup=False)
        raise SystemExit(failure.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0)
