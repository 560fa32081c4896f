"""Whole files in and out: JSON Lines into the record, the record as JSON Lines.

In: paths. Out: counts and the problems by file and line. Importing twice adds nothing, nor does an earlier state of what is
there; a conversation that has grown is extended; one that differs is kept as a version of its own and flagged. A bad line
never stops the good ones. Consent, thumbs and labels may be told later about words that are there already.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conversations.errors import OperatorError, OutsideError
from conversations.formats import ImportedConversation, LineRejected, parse_line
from conversations.messages import Author, Consent, Json, Role, TurnStatus, utc_now
from conversations.store import Record, Transaction
from conversations.tombstones import is_buried
from conversations.turns import Turn, all_turns, branch_to, insert_conversation, insert_turn

ProblemVerdict = Literal["reject", "repair", "flag"]


@dataclass(frozen=True)
class Problem:
    """Something about one line that a person should know."""

    file: str
    line: int
    verdict: ProblemVerdict
    reason: str


@dataclass
class ImportCounts:
    """What an import did, added up over its files."""

    files: int = 0
    lines: int = 0
    conversations: int = 0
    turns: int = 0
    already_present: int = 0
    repaired: int = 0
    flagged: int = 0
    rejected: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    path: Path
    conversations: int
    turns: int
    digest: str


def import_files(record: Record, paths: Sequence[Path]) -> ImportCounts:
    """Import JSON Lines files.

    Raises OperatorError for a file that cannot be read, before anything of any file goes in.
    """
    for path in paths:
        if not path.is_file():
            raise OperatorError(f"{path}: no such file; expected JSON Lines, one conversation a line")
    counts = ImportCounts()
    for path in paths:
        counts.files += 1
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                counts.lines += 1
                _import_line(record, counts, path, number, line.rstrip(b"\r\n"))
    return counts


def _import_line(record: Record, counts: ImportCounts, path: Path, number: int, line: bytes) -> None:
    def tell(verdict: ProblemVerdict, reason: str) -> None:
        counts.problems.append(Problem(str(path), number, verdict, reason))

    if not line.strip():
        counts.repaired += 1
        tell("repair", "an empty line, left out")
        return
    try:
        imported = parse_line(line)
        added, turns_added, note = _enter(record, imported)
    except LineRejected as rejection:
        counts.rejected += 1
        tell("reject", str(rejection))
        return
    if imported.repairs:
        counts.repaired += 1
        tell("repair", "; ".join(imported.repairs))
    flags = [*imported.flags, *([note] if note else [])]
    if flags:
        counts.flagged += 1
        tell("flag", "; ".join(flags))
    counts.conversations += added
    counts.turns += turns_added
    counts.already_present += not added and not turns_added


def _enter(record: Record, imported: ImportedConversation) -> tuple[int, int, str]:
    """Enter a conversation: new, grown, present or differing. Return conversations and turns added, and a note.

    Raises LineRejected when its customer or the conversation itself was erased.
    """
    customer_id = imported.customer_id or f"only-{_short_hash(imported.source_id)}"
    with record.write() as transaction:
        for kind, name in (("customer", customer_id), ("conversation", imported.source_id)):
            if is_buried(transaction, kind, name):
                raise LineRejected(f"this {kind} was erased from the record and must not come back")
        versions = transaction.query(
            "SELECT conversation_id, content_hash FROM conversations WHERE source_id = ? ORDER BY conversation_id",
            [imported.source_id],
        )
        same = [str(row["conversation_id"]) for row in versions if row["content_hash"] == imported.content_hash]
        if same:
            changed = _tell_later(transaction, same[0], imported)
            return 0, 0, "; ".join([*changed, *(["one of several versions under this id"] if len(versions) > 1 else [])])
        for row in versions:
            conversation_id = str(row["conversation_id"])
            grown = _extend(record, transaction, conversation_id, imported)
            if grown is not None:
                return 0, grown, "; ".join(_tell_later(transaction, conversation_id, imported))
        _insert(transaction, imported, customer_id, first_version=not versions)
    return 1, len(imported.messages), "differs from what is recorded under this id: kept as a version" if versions else ""


def _insert(transaction: Transaction, imported: ImportedConversation, customer_id: str, *, first_version: bool) -> None:
    created = imported.created_at_utc or utc_now()
    # Derived from the source, so that the same import into two records gives the same names.
    name = imported.source_id if first_version else f"{imported.source_id} {imported.content_hash}"
    conversation_id = f"conversation_{_short_hash(name)}"
    insert_conversation(
        transaction,
        conversation_id=conversation_id,
        customer_id=customer_id,
        created_at_utc=created,
        more={
            "channel": "import",
            "state": "resolved" if imported.messages[-1].role is Role.ASSISTANT else "bot",
            "consent": imported.consent,
            "source_id": imported.source_id,
            "labels_json": json.dumps(dict(imported.labels), ensure_ascii=False, sort_keys=True),
            "tools_json": imported.tools_json,
            "content_hash": imported.content_hash,
            "flagged_reason": "; ".join(imported.flags) or None,
        },
    )
    _append(transaction, conversation_id, customer_id, imported, 0, created)


def _tell_later(transaction: Transaction, conversation_id: str, imported: ImportedConversation) -> list[str]:
    """Take over what a line tells anew about words that are recorded; return what changed."""
    head = transaction.query("SELECT * FROM conversations WHERE conversation_id = ?", [conversation_id])[0]
    changed: list[str] = []
    if imported.consent is not Consent.UNKNOWN and imported.consent != head["consent"]:
        changed.append(f"consent changed from {head['consent']} to {imported.consent}")
        transaction.execute(
            "UPDATE conversations SET consent = ? WHERE conversation_id = ?", [imported.consent, conversation_id]
        )
    labels_json = json.dumps(dict(imported.labels), ensure_ascii=False, sort_keys=True)
    if imported.labels and labels_json != head["labels_json"]:
        changed.append("labels changed")
        transaction.execute(
            "UPDATE conversations SET labels_json = ? WHERE conversation_id = ?", [labels_json, conversation_id]
        )
    votes = sum(
        transaction.execute(
            "INSERT INTO feedback (turn_id, customer_id, vote, given_at_utc) SELECT ?, ?, ?, ? "
            "WHERE EXISTS (SELECT 1 FROM turns WHERE turn_id = ?) "
            "ON CONFLICT (turn_id, customer_id) DO UPDATE SET vote = excluded.vote, given_at_utc = excluded.given_at_utc "
            "WHERE vote <> excluded.vote",
            [turn_id, head["customer_id"], vote, utc_now(), turn_id],
        )
        for turn_id, vote in ((_turn_name(conversation_id, position), vote) for position, vote in imported.votes.items())
    )
    return [*changed, f"{votes} thumbs changed"] if votes else changed


def _extend(record: Record, transaction: Transaction, conversation_id: str, imported: ImportedConversation) -> int | None:
    """Append what is new when the recorded turns begin the imported ones, or the other way round; return how many.

    None when they differ.
    """
    recorded = branch_to(all_turns(record, conversation_id))
    said = [(turn.role, turn.content, turn.extra_json) for turn in recorded]
    told = [(message.role, message.content, message.extra_json) for message in imported.messages]
    shared = min(len(told), len(said))
    if told[:shared] != said[:shared]:
        return None
    if len(told) <= len(said):
        return 0
    owner = transaction.query("SELECT customer_id FROM conversations WHERE conversation_id = ?", [conversation_id])[0]
    _append(transaction, conversation_id, str(owner["customer_id"]), imported, len(said), utc_now())
    transaction.execute(
        "UPDATE conversations SET content_hash = ? WHERE conversation_id = ?", [imported.content_hash, conversation_id]
    )
    return len(told) - len(said)


def _append(
    transaction: Transaction,
    conversation_id: str,
    customer_id: str,
    imported: ImportedConversation,
    first: int,
    created: str,
) -> None:
    for position, message in enumerate(imported.messages[first:], start=first):
        turn_id = _turn_name(conversation_id, position)
        insert_turn(
            transaction,
            conversation_id=conversation_id,
            turn_id=turn_id,
            role=message.role,
            author=Author.CUSTOMER if message.role is Role.USER else Author.IMPORTED,
            status=TurnStatus.COMPLETE,
            content=message.content,
            created_at_utc=created,
            extra_json=message.extra_json,
            parent_turn_id=_turn_name(conversation_id, position - 1) if position > first else None,
        )
        if position in imported.votes:
            transaction.insert(
                "feedback",
                {
                    "turn_id": turn_id,
                    "customer_id": customer_id,
                    "vote": imported.votes[position],
                    "given_at_utc": created,
                },
            )


def _turn_name(conversation_id: str, position: int) -> str:
    return f"turn_{_short_hash(f'{conversation_id} {position}')}"


def export_file(record: Record, path: Path) -> Exported:
    """Write the whole record as JSON Lines, unredacted, in a fixed order, with a manifest beside it.

    Raises OperatorError for a folder, OutsideError where nothing can be written; then no part is left behind.
    """
    digest = hashlib.sha256()
    conversations = turns = 0
    half = path.with_name(f".{path.name}.half")
    if path.is_dir():
        raise OperatorError(f"{path}: is a folder; expected the name of a file to write; add one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("wb") as out:
            for line, turn_count in _export_lines(record):
                out.write(line)
                digest.update(line)
                conversations += 1
                turns += turn_count
        os.replace(half, path)
    except OSError as error:
        raise OutsideError(f"{path}: {error.strerror or error}; give a place that can be written to") from None
    finally:
        half.unlink(missing_ok=True)
    exported = Exported(path, conversations, turns, "sha256:" + digest.hexdigest())
    manifest = {"conversations": conversations, "turns": turns, "digest": exported.digest}
    path.with_name(path.name + ".manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return exported


def _export_lines(record: Record) -> Iterator[tuple[bytes, int]]:
    # Versions under one id follow each other as they came, so that an import names them the same.
    for row in record.query("SELECT conversation_id FROM conversations ORDER BY created_at_utc, conversation_seq"):
        conversation_id = str(row["conversation_id"])
        head = record.query("SELECT * FROM conversations WHERE conversation_id = ?", [conversation_id])[0]
        turns = [turn for turn in branch_to(all_turns(record, conversation_id)) if _was_said(turn)]
        consent = str(head["consent"])
        fields: dict[str, Json] = {
            "id": head["source_id"] or conversation_id,
            "customer_id": head["customer_id"],
            "created_at": head["created_at_utc"],
            "messages": [
                {
                    "role": turn.role.value,
                    "content": turn.content,
                    **(json.loads(turn.extra_json) if turn.extra_json else {}),
                }
                for turn in turns
            ],
            "labels": json.loads(str(head["labels_json"])),
            "feedback": [
                {"message": position, "value": turn.vote.value} for position, turn in enumerate(turns) if turn.vote
            ],
        }
        if head["tools_json"]:
            fields["tools"] = json.loads(str(head["tools_json"]))
        if consent != "unknown":
            fields["consent"] = consent == "yes"
        yield (json.dumps(fields, ensure_ascii=False) + "\n").encode("utf-8", "replace"), len(turns)


def _was_said(turn: Turn) -> bool:
    return bool(turn.content or turn.extra_json) and turn.status is not TurnStatus.FAILED


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:24]
