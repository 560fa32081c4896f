"""A settings file with some [train] keys changed, as a person would have edited it.

In: the text of a settings file, what it was read as, and the changes. Out: text in which nothing else differs, but for relative
paths, which are written anew for the folder that the new file stands in. Comments stay. Read back before it is handed out: a file
that is written in a way that cannot be edited line by line is refused, never spoilt.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from conversations.errors import OperatorError
from conversations.messages import Json
from distill.settings import DistillSettings

_HEADER = re.compile(r"""\s*\[([\w\s.'"-]+)\]\s*(?:#.*)?$""")
_ASSIGNMENT = re.compile(
    r"""(?P<before>\s*(?P<quote>["']?)(?P<key>[\w-]+)(?P=quote)\s*=\s*)(?P<value>"[^"]*"|'[^']*'|[^#\s][^#]*?)(?P<after>\s*(?:#.*)?)$"""
)
Tables = Mapping[str, object]


def changed_settings(settings: DistillSettings, changes: Mapping[str, float | int], folder: Path) -> str:
    """Return the text of the settings' file with the [train] keys changed, for a file that will stand in `folder`.

    Raises OperatorError where the file cannot be edited so.
    """
    # Read without translating the ends of lines, which stay as they are.
    text = settings.settings_file.read_bytes().decode("utf-8")
    before = tomllib.loads(text)
    edits: dict[tuple[str, str], Json] = {("train", key): value for key, value in changes.items()}
    edits |= _moved_paths("", before, settings.model_dump(), folder)
    edited = _edited(text, edits)
    expected = {**_flat("", before), **{f"{table}.{key}".lstrip("."): value for (table, key), value in edits.items()}}
    if _read_back(edited) != expected:
        raise OperatorError(
            f"{settings.settings_file}: the best settings cannot be written into a copy of it line by line (an inline table, a "
            f"dotted key or a text of several lines is in the way of {', '.join(f'[train] {key}' for key in changes)}); expected "
            "tables with one key a line; write it so, and run the same command again"
        )
    return edited


def _moved_paths(table: str, written: Tables, read: Tables, folder: Path) -> dict[tuple[str, str], Json]:
    """Return the relative paths of a file, as they must be written in another folder, by table and key."""
    moved: dict[tuple[str, str], Json] = {}
    for key, value in written.items():
        known = read.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            moved |= _moved_paths(f"{table}.{key}".lstrip("."), value, known, folder)
        # What the settings resolve differs from what is written: paths, and names that may be paths.
        elif (
            isinstance(value, str)
            and isinstance(known, str | Path)
            and str(known) != value
            and not Path(value).is_absolute()
        ):
            moved[table, key] = os.path.relpath(known, folder)
    return moved


def _edited(text: str, edits: Mapping[tuple[str, str], Json]) -> str:
    """Return a text with values replaced where they stand, and keys that are missing put below the header of their table."""
    carriage = "\r" if "\r\n" in text else ""
    lines: list[str] = []
    table, below, left = "", dict[str, int](), dict(edits)
    # TOML knows no other ends of lines; `splitlines` would break texts that hold U+0085 or U+2028.
    for written in text.removesuffix("\n").split("\n"):
        line = written.removesuffix("\r")
        header, assignment = _HEADER.match(line), _ASSIGNMENT.match(line)
        if header:
            table = ".".join(name.strip().strip("\"'") for name in header[1].split("."))
            below[table] = len(lines) + 1
        elif assignment and (table, assignment["key"]) in left:
            line = f"{assignment['before']}{json.dumps(left.pop((table, assignment['key'])), ensure_ascii=False)}{assignment['after']}"
        lines.append(line + written[len(written.removesuffix("\r")) :])
    for (name, key), value in reversed(left.items()):
        if name not in below:
            below[name] = len(lines) + 2
            lines += [carriage, f"[{name}]{carriage}"]
        lines.insert(below[name], f"{key} = {json.dumps(value, ensure_ascii=False)}{carriage}")
    return "\n".join(lines) + "\n"


def _read_back(text: str) -> dict[str, object] | None:
    """Return every value of a text by its dotted name, or None where it is no TOML."""
    try:
        return _flat("", tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return None


def _flat(prefix: str, table: Tables) -> dict[str, object]:
    """Return every value of nested tables by its dotted name."""
    found: dict[str, object] = {}
    for key, value in table.items():
        name = f"{prefix}.{key}".lstrip(".")
        found |= _flat(name, value) if isinstance(value, dict) else {name: value}
    return found
