"""A disk that is full, told as what it is, whoever was writing."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from conversations.errors import OutsideError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_failure(error: BaseException | None) -> OSError | None:
    """Return the operating system's error behind one of torch's writer, or None where there is none."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def telling_of_a_full_disk(folder: Path) -> Iterator[None]:
    """Raise OutsideError where what is written under a folder does not fit on its disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OutsideError(_told(error.filename or folder, folder, error.strerror or str(error))) from None
    except SafetensorError as error:
        # It names the operating system's error in words alone.
        if not any(f"os error {number}" in str(error) for number in _FULL):
            raise
        raise OutsideError(_told(folder, folder, str(error))) from None


def _told(path: Path | str, folder: Path, why: str) -> str:
    return (
        f"{path}: cannot be written: {why}; {shutil.disk_usage(folder).free} bytes are free there; expected room for "
        "what a training writes; make room and run the same again: it goes on after its last checkpoint, where there is one"
    )
