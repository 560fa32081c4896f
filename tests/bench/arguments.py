"""What the benchmarks take on their command lines, checked while it is read: nobody waits for an error until libraries are loaded.

In: an argument's text. Out: its value, or the error that argparse prints beside the option's name.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def folder_with(*names: str) -> Callable[[str], Path]:
    """Return what reads a folder that must hold these files or folders."""

    def folder(text: str) -> Path:
        missing = [name for name in names if not (Path(text) / name).exists()]
        if not Path(text).is_dir():
            raise ArgumentTypeError(f"there is no folder {text!r}; expected one with {', '.join(names)}")
        if missing:
            raise ArgumentTypeError(
                f"there is no {', '.join(missing)} in {text!r}; expected a folder with {', '.join(names)}"
            )
        return Path(text)

    return folder


def at_least_one(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
