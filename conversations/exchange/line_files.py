"""Files of lines, read one line at a time with a bound, whatever they hold.

In: a path. Out: each line with its number, or the reason why it was not read. A line that is too long is skipped to its end
without being held; a file that holds no lines at all, such as a compressed one, is named at its first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from conversations.errors import OperatorError, OutsideError

_PIECE_BYTES = 1024 * 1024
# What a file begins with that was given by mistake, and what to do.
_NO_LINES = (
    (b"\x1f\x8b", "a gzip file; unpack it first: gunzip --keep FILE"),
    (b"PK\x03\x04", "a zip file or a spreadsheet; unpack it, or save it as JSON Lines"),
    (b"BZh", "a bzip2 file; unpack it first: bunzip2 --keep FILE"),
    (b"\xfd7zXZ\x00", "an xz file; unpack it first: unxz --keep FILE"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first: unzstd --keep FILE"),
    (b"PAR1", "a Parquet file; write it as JSON Lines first"),
    (b"SQLite format 3\x00", "an SQLite database; `conversations export` writes a record as JSON Lines"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"{\x00", "UTF-16 text; save it as UTF-8: iconv -f UTF-16LE -t UTF-8"),
    (b"\x00{", "UTF-16 text; save it as UTF-8: iconv -f UTF-16BE -t UTF-8"),
)


@dataclass(frozen=True, slots=True)
class FileLine:
    """A line without its end. `refused` says why it was not read; then `content` is empty."""

    number: int
    content: bytes
    refused: str = ""


def check_readable(path: Path) -> None:
    """Raise OperatorError for a path that no lines can be read from."""
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "no such file"
        raise OperatorError(f"{path}: {what}; expected JSON Lines, one conversation a line; mend the path")
    # Opening a pipe and closing it again would end its writer.
    if path.is_file():
        _open(path).close()


def lines_of(path: Path, *, max_line_bytes: int) -> Iterator[FileLine]:
    """Yield the lines of a file.

    Raises OperatorError where it cannot be opened, OutsideError where the disk fails while it is read.
    """
    with _open(path) as file:
        try:
            start = file.peek(16)
            for magic, found in _NO_LINES:
                if start.startswith(magic):
                    yield FileLine(1, b"", f"the file is {found}; nothing of it was read")
                    return
            yield from _bounded(file, max_line_bytes)
        except OSError as error:
            raise OutsideError(
                f"{path}: {error.strerror or error}; what was read is kept; look after the disk and run the same again"
            ) from None


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror or error}; mend its permissions or the path") from None


def _bounded(file: BufferedReader, max_line_bytes: int) -> Iterator[FileLine]:
    number = 0
    while line := file.readline(max_line_bytes + 2):
        number += 1
        if len(line.rstrip(b"\r\n")) <= max_line_bytes:
            yield FileLine(number, line.rstrip(b"\r\n"))
            continue
        size = len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(_PIECE_BYTES)
            size += len(line)
        yield FileLine(number, b"", f"the line has {size} bytes; {max_line_bytes} are allowed; it was skipped to its end")
