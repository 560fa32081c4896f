"""Lines of conversation logs, made by hand or by hypothesis, and short ways to import and export them."""

import json
from pathlib import Path

from hypothesis import strategies as st

from conversations.exchange import exports, imports
from conversations.store import Record

# Everything that JSON and UTF-8 can carry and a record keeps as it came: no NUL, no half surrogate pairs.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)
words = st.sampled_from(
    ["Where is my order?", "退款", "<b>hi</b>", "a\u2028b", "=1+1", "\u202eabc", "😀", "e\u0301", "\ufffe", "x\r\ny"]
)
numbers = st.sampled_from(["0", "-0", "1.0", "1.50", "1E5", "1e-7", "12345678901234567890", "0.1000"])


@st.composite
def json_texts(draw: st.DrawFn, levels: int = 2) -> str:
    """A JSON value with an odd spelling: spaces, key order, escapes and numbers as somebody might write them."""
    space = draw(st.sampled_from(["", " ", "\t"]))
    if levels == 0 or draw(st.booleans()):
        text = st.builds(lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only), texts, st.booleans())
        return draw(st.one_of(numbers, st.sampled_from(["true", "null"]), text))
    values = draw(st.lists(json_texts(levels - 1), max_size=3))
    if draw(st.booleans()):
        return f"[{space}{f',{space}'.join(values)}{space}]"
    keys = draw(st.lists(texts, min_size=len(values), max_size=len(values), unique=True))
    pairs = [f"{json.dumps(key)}{space}:{space}{value}" for key, value in zip(keys, values, strict=True)]
    return f"{{{space}{f' ,{space}'.join(pairs)}{space}}}"


@st.composite
def message_texts(draw: st.DrawFn, role: str) -> str:
    content = json.dumps(draw(st.one_of(words, texts.map(lambda text: text + "."))), ensure_ascii=draw(st.booleans()))
    parts = [f'"role": "{role}"', f'"content": {content}']
    if role == "assistant" and draw(st.integers(0, 3)) == 0:
        parts[1] = '"content": null'
        parts.append(f'"tool_calls": [{draw(json_texts())}, 1]')
    if draw(st.integers(0, 3)) == 0:
        parts.insert(draw(st.integers(0, len(parts))), f'"x-{draw(st.integers(0, 9))}": {draw(json_texts())}')
    return "{" + ", ".join(parts) + "}"


@st.composite
def line_texts(draw: st.DrawFn, conversation_ids: st.SearchStrategy[str]) -> str:
    """A line that goes in, in any spelling."""
    roles = draw(st.lists(st.sampled_from(["user", "assistant", "system", "tool"]), max_size=5))
    messages = [draw(message_texts(role)) for role in ["user", *roles]]
    parts = [f'"id": {json.dumps(draw(conversation_ids))}', f'"messages": [{", ".join(messages)}]']
    if draw(st.booleans()):
        parts.append(f'"tools": [{draw(json_texts())}]')
    if draw(st.booleans()):
        parts.append(f'"tool_choice": {draw(json_texts())}')
    if draw(st.booleans()):
        consent = draw(st.sampled_from(["true", "false"]))
        parts.append(f'"labels": {json.dumps({draw(texts): draw(texts)})}, "tags": ["late", "vip"], "consent": {consent}')
    if draw(st.booleans()):
        vote = draw(st.sampled_from(["up", "down"]))
        parts.append(f'"feedback": [{{"message": 0, "value": "{vote}"}}], "created_at": "2024-05-01T10:00:00+02:00"')
    return "{" + ", ".join(draw(st.permutations(parts))) + "}"


def write(path: Path, *lines: object) -> Path:
    """Write lines, given as text or as values."""
    path.write_bytes(
        b"".join(
            (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)).encode() + b"\n" for each in lines
        )
    )
    return path


def bring_in(record: Record, path: Path, *lines: object) -> imports.ImportCounts:
    return imports.import_files(record, [write(path, *lines)])


def exported(record: Record, path: Path, export_format: exports.ExportFormat = exports.ExportFormat.CHAT) -> list[str]:
    exports.export_file(record, path, export_format)
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def contents(record: Record) -> dict[str, int]:
    """How many rows each table of customers' words has."""
    tables = ("conversations", "turns", "feedback", "conversation_tags", "customers")
    return {table: int(record.query(f"SELECT COUNT(*) AS n FROM {table}")[0]["n"] or 0) for table in tables}
