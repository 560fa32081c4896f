"""Editions of the test set: numbered, frozen by digest, and never changed afterwards.

In: lines of text, one for each held-out decision. Out: the same lines, byte for byte, for ever. The digest is the SHA-256 of the
lines as a file, so that `sha256sum test.jsonl` shows it (editions of the first version keep the digest that it gave them).
Nothing here reads the lines or writes them anew: a later version that knows more of a row does not change an old one. Only an
erasure takes lines out; the edition then says how many, and the next assemble freezes a new one. A withdrawn consent changes no
edition, but the next one is made without its lines.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from conversations.messages import content_hash, utc_now
from conversations.store import Record, Row, Transaction


@dataclass(frozen=True)
class Edition:
    """A frozen test set. `lines` are its rows by decision, in their order; `erased_rows` is how many an erasure took out since.

    `added_rows` counts what the edition before did not have, `withdrawn_rows` what it had and this one has not; `follows_erasure`
    tells that the one before had lost rows.
    """

    edition: int
    digest: str
    erased_rows: int = 0
    added_rows: int = 0
    withdrawn_rows: int = 0
    follows_erasure: bool = False
    lines: Mapping[str, str] = field(default_factory=dict)


def newest_edition(record: Record) -> Edition:
    """Return the newest edition; number 0, without a line, where there is none."""
    row = record.one("SELECT MAX(edition) AS edition FROM editions")
    return edition_of(record, int((row or {}).get("edition") or 0))


def edition_of(record: Record, edition: int) -> Edition:
    """Return an edition by its number; without a line and with the digest of nothing where there is none."""
    head = record.one("SELECT * FROM editions WHERE edition = ?", [edition])
    before = record.one("SELECT * FROM editions WHERE edition = ?", [edition - 1])
    rows = record.query(
        "SELECT decision_id, row_json FROM edition_decisions WHERE edition = ? ORDER BY decision_id", [edition]
    )
    known = {
        str(row["decision_id"])
        for row in record.query("SELECT decision_id FROM edition_decisions WHERE edition = ?", [edition - 1])
    }
    lines = {str(row["decision_id"]): str(row["row_json"]) for row in rows}
    return Edition(
        edition=edition if head else 0,
        digest=str(head["digest"]) if head else lines_digest(()),
        erased_rows=int(head["erased_rows"] or 0) if head else 0,
        added_rows=len(lines.keys() - known),
        withdrawn_rows=len(known - lines.keys()) if head else 0,
        follows_erasure=bool(before and before["erased_rows"]),
        lines=lines,
    )


def next_edition(
    record: Record, run_id: str, new_lines: Mapping[str, str], *, withdrawn: Collection[str] = frozenset()
) -> Edition:
    """Return the edition that holds the newest one's lines as they are, without those of withdrawn decisions, and the new ones.

    Where nothing is new, erased or withdrawn it is the newest one; a decision that it holds already keeps its old line.
    """
    with record.write() as transaction:
        newest = transaction.query("SELECT edition, erased_rows FROM editions ORDER BY edition DESC LIMIT 1")
        number = int(newest[0]["edition"] or 0) if newest else 0
        held = {
            str(row["decision_id"])
            for row in transaction.query("SELECT decision_id FROM edition_decisions WHERE edition = ?", [number])
        }
        added = {name: line for name, line in new_lines.items() if name not in held}
        if added or held & set(withdrawn) or (newest and int(newest[0]["erased_rows"] or 0)):
            _freeze(transaction, run_id, number, added, set(withdrawn))
    return newest_edition(record)


def _freeze(
    transaction: Transaction, run_id: str, before: int, added: Mapping[str, str], withdrawn: Collection[str]
) -> None:
    rows = transaction.query("SELECT decision_id, row_json FROM edition_decisions WHERE edition = ?", [before])
    kept = {str(row["decision_id"]): str(row["row_json"]) for row in rows if row["decision_id"] not in withdrawn}
    lines = dict(sorted({**kept, **added}.items()))
    edition = before + 1
    transaction.insert(
        "editions",
        {
            "edition": edition,
            "digest": lines_digest(tuple(lines.values())),
            "made_by_run_id": run_id,
            "made_at_utc": utc_now(),
        },
    )
    transaction.insert_many(
        "edition_decisions",
        [{"edition": edition, "decision_id": name, "row_json": line} for name, line in lines.items()],
    )
    note_edition_rows(transaction, edition)


def lines_digest(lines: Sequence[str]) -> str:
    """Return the SHA-256 of lines as a file, each with its line end."""
    return "sha256:" + hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def note_edition_rows(transaction: Transaction, edition: int, *, erased: int = 0) -> None:
    """Note the hash of an edition's rows as they are now, and how many an erasure took out."""
    rows = transaction.query("SELECT * FROM edition_decisions WHERE edition = ? ORDER BY decision_id", [edition])
    transaction.execute(
        "UPDATE editions SET rows_hash = ?, erased_rows = erased_rows + ? WHERE edition = ?",
        [edition_hash(rows), erased, edition],
    )


def edition_hash(rows: Sequence[Row]) -> str:
    """Return the hash of an edition's rows, in the order of their decisions."""
    return content_hash([[row["decision_id"], row["row_json"]] for row in rows])
