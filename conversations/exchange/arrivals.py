"""How a conversation that comes in meets what is recorded: it is new, present, grown, or differs.

In: an open transaction and a conversation as a line told it. Out: what was added, and what a person should know. Present is
what some branch of a recorded conversation holds already, so that importing again adds nothing whatever was said since.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from conversations.entry import TURNS_PER_CONVERSATION, SaidTurn, insert_conversation, insert_customer, insert_said_turns
from conversations.exchange.formats import ImportedConversation, is_said, said_in
from conversations.exchange.line_facts import LineRejected, TurnDetail
from conversations.messages import (
    OPEN_STATUSES,
    Author,
    ChatMessage,
    Consent,
    Json,
    Role,
    TurnStatus,
    canonical_json,
    new_name,
    utc_now,
)
from conversations.store import Row, Transaction
from conversations.tags import insert_tags
from conversations.tombstones import is_buried

_DIFFERS = "differs from what is recorded under this id: kept as a version"


@dataclass(frozen=True)
class Arrival:
    """What entering a conversation added."""

    conversations: int
    turns: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Recorded:
    """How far the messages of a line are recorded: the turns that hold them, and whether the visible thread ends there."""

    path: tuple[str, ...]
    at_tip: bool
    has_open_reply: bool


def enter(transaction: Transaction, imported: ImportedConversation, language: str, *, channel: str = "import") -> Arrival:
    """Enter a conversation.

    Raises LineRejected, with nothing changed, when its customer or the conversation itself was erased, or when it has grown
    while an answer is being written in it.
    """
    customer_id = imported.customer_id or _nobody_else(imported.source_id)
    for kind, name in (("customer", customer_id), ("conversation", imported.source_id)):
        if is_buried(transaction, kind, name):
            raise LineRejected(f"this {kind} was erased from the record and must not come back")
    versions = transaction.query(
        "SELECT * FROM conversations WHERE source_id = ? OR (conversation_id = ? AND source_id IS NULL) ORDER BY conversation_seq",
        [imported.source_id, imported.source_id],
    )
    # What one customer said never goes into a conversation of another, or an erasure would miss it.
    of_theirs = [head for head in versions if _may_be_of(str(head["customer_id"]), imported)]
    for head in of_theirs:
        if head["content_hash"] == imported.content_hash:
            versions_note = ["one of several versions under this id"] if len(versions) > 1 else []
            return Arrival(0, 0, (*_tell_later(transaction, head, of_theirs, imported), *versions_note))
    for head in of_theirs:
        arrival = _meet(transaction, head, of_theirs, imported, language)
        if arrival is not None:
            return arrival
    if len(imported.messages) > TURNS_PER_CONVERSATION:
        raise LineRejected(f"{len(imported.messages)} messages; {TURNS_PER_CONVERSATION} are allowed in one conversation")
    told = _tell_consent(transaction, [], of_theirs, imported)
    if _has_no(of_theirs):
        imported = replace(imported, consent=Consent.NO)
    _insert(transaction, imported, customer_id, language, is_first=not versions, channel=channel)
    return Arrival(1, len(imported.messages), (*((_DIFFERS,) if versions else ()), *told))


def _may_be_of(recorded: str, imported: ImportedConversation) -> bool:
    """Tell whether a recorded customer is the line's: the same name, or nobody was named on one side."""
    return imported.customer_id in (None, recorded) or recorded == _nobody_else(imported.source_id)


def _nobody_else(source_id: str) -> str:
    """Return the name of the customer of one conversation alone, whom no line names."""
    return f"only-{_short_hash(source_id)}"


def _meet(
    transaction: Transaction, head: Row, of_theirs: Sequence[Row], imported: ImportedConversation, language: str
) -> Arrival | None:
    """Extend a recorded conversation, or find that it holds all of the imported one; None where the two differ."""
    if not _same_tools(str(head["tools_json"]), imported.tools_json):
        return None
    found = _recorded(_turns(transaction, str(head["conversation_id"])), imported.messages)
    new = len(imported.messages) - len(found.path)
    if not new:
        # An earlier state tells nothing new, except that a customer said no.
        if found.at_tip:
            return Arrival(0, 0, tuple(_tell_later(transaction, head, of_theirs, imported)))
        return Arrival(0, 0, tuple(_tell_consent(transaction, [head], of_theirs, imported)))
    if not found.at_tip:
        return None
    if found.has_open_reply:
        raise LineRejected("has grown, but an answer is being written in it just now; import it again later")
    if int(head["turn_count"] or 0) + new > TURNS_PER_CONVERSATION:
        raise LineRejected(f"would have more than {TURNS_PER_CONVERSATION} turns; give the rest an id of its own")
    conversation_id = str(head["conversation_id"])
    _append(transaction, conversation_id, str(head["customer_id"]), imported, len(found.path), utc_now())
    transaction.execute(
        "UPDATE conversations SET content_hash = ?, language = CASE language WHEN '' THEN ? ELSE language END "
        "WHERE conversation_id = ?",
        [imported.content_hash, language, conversation_id],
    )
    return Arrival(0, new, tuple(_tell_later(transaction, head, of_theirs, imported)))


def _insert(
    transaction: Transaction,
    imported: ImportedConversation,
    customer_id: str,
    language: str,
    *,
    is_first: bool,
    channel: str,
) -> None:
    created = imported.created_at_utc or utc_now()
    # Derived from the source, so that the same import into two records gives the same names.
    conversation_id = conversation_name(imported.source_id if is_first else _version_name(imported))
    if transaction.query("SELECT 1 FROM conversations WHERE conversation_id = ?", [conversation_id]):
        # The same words under the same id, of another customer.
        conversation_id = conversation_name(f"{_version_name(imported)} {customer_id}")
    if transaction.query("SELECT 1 FROM conversations WHERE conversation_id = ?", [conversation_id]):
        conversation_id = new_name("conversation")
    insert_conversation(
        transaction,
        conversation_id=conversation_id,
        customer_id=customer_id,
        created_at_utc=created,
        more={
            "channel": channel,
            "state": "resolved" if imported.messages[-1].role is Role.ASSISTANT else "bot",
            "consent": imported.consent,
            "source_id": imported.source_id,
            "labels_json": _labels_text(imported),
            "tools_json": imported.tools_json,
            "extra_json": imported.extra_json,
            "language": language,
            "content_hash": imported.content_hash,
            "flagged_reason": "; ".join([*imported.flags, *([] if is_first else [_DIFFERS])]) or None,
        },
    )
    _append(transaction, conversation_id, customer_id, imported, 0, created)
    insert_tags(transaction, conversation_id, imported.tags, tagged_by="import")


def conversation_name(source_id: str) -> str:
    """Return the name under which a conversation of a log is first entered."""
    return f"conversation_{_short_hash(source_id)}"


def turn_name(conversation_id: str, place: int) -> str:
    """Return the name of a turn that comes in at a place of its conversation."""
    return f"turn_{_short_hash(f'{conversation_id} {place}')}"


def _version_name(imported: ImportedConversation) -> str:
    return f"{imported.source_id} {imported.content_hash}"


def _append(
    transaction: Transaction, conversation_id: str, customer_id: str, imported: ImportedConversation, first: int, now: str
) -> None:
    said: list[SaidTurn] = []
    for place, message in enumerate(imported.messages[first:], start=first):
        usual = TurnDetail(
            Author.CUSTOMER if message.role is Role.USER else Author.IMPORTED, TurnStatus.COMPLETE, None, None
        )
        detail = imported.details.get(place, usual)
        # Decisions and their splits are derived from this name: it never changes.
        turn_id = turn_name(conversation_id, place)
        # A place that a branch beside this one took before.
        if first and transaction.query("SELECT 1 FROM turns WHERE turn_id = ?", [turn_id]):
            turn_id = new_name("turn")
        said.append(
            SaidTurn(
                turn_id,
                message.role,
                detail.author,
                detail.status,
                message.content,
                message.extra_json,
                _known_release(transaction, detail.release_id),
                detail.created_at_utc or now,
            )
        )
    insert_said_turns(transaction, conversation_id, said)
    transaction.insert_many(
        "feedback",
        [
            {
                "turn_id": each.turn_id,
                "customer_id": customer_id,
                "vote": imported.thumbs[place].vote,
                "reason": imported.thumbs[place].reason,
                "given_at_utc": now,
            }
            for place, each in enumerate(said, start=first)
            if place in imported.thumbs
        ],
    )


def _known_release(transaction: Transaction, release_id: str | None) -> str | None:
    if release_id is None:
        return None
    return release_id if transaction.query("SELECT 1 FROM releases WHERE release_id = ?", [release_id]) else None


def _tell_later(transaction: Transaction, head: Row, of_theirs: Sequence[Row], imported: ImportedConversation) -> list[str]:
    """Take over what a line tells anew about words that are recorded; return what changed."""
    conversation_id = str(head["conversation_id"])
    changed = _tell_consent(transaction, [head], of_theirs, imported)
    changed += _tell_customer(transaction, head, imported)
    for name, text in (("labels_json", _labels_text(imported)), ("extra_json", imported.extra_json)):
        if text not in ("", "{}", head[name]):
            changed.append("labels changed" if name == "labels_json" else "further keys changed")
            transaction.execute(f"UPDATE conversations SET {name} = ? WHERE conversation_id = ?", [text, conversation_id])
    if insert_tags(transaction, conversation_id, imported.tags, tagged_by="import"):
        changed.append("tags added")
    if imported.thumbs:
        path = _recorded(_turns(transaction, conversation_id), imported.messages).path
        votes = sum(
            transaction.execute(
                "INSERT INTO feedback (turn_id, customer_id, vote, reason, given_at_utc) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (turn_id, customer_id) DO UPDATE SET vote = excluded.vote, reason = excluded.reason, "
                "given_at_utc = excluded.given_at_utc WHERE vote <> excluded.vote OR reason <> excluded.reason",
                [path[place], imported.customer_id or head["customer_id"], thumb.vote, thumb.reason, utc_now()],
            )
            for place, thumb in imported.thumbs.items()
            if place < len(path)
        )
        changed += [f"{votes} thumbs changed"] if votes else []
    return changed


def _tell_customer(transaction: Transaction, head: Row, imported: ImportedConversation) -> list[str]:
    """Take over the name of a customer who was not named before, so that an erasure finds all that is theirs."""
    named, before = imported.customer_id, str(head["customer_id"])
    if named is None or named == before:
        return []
    insert_customer(transaction, named, utc_now())
    transaction.execute(
        "UPDATE conversations SET customer_id = ? WHERE conversation_id = ?", [named, head["conversation_id"]]
    )
    transaction.execute(
        "UPDATE feedback SET customer_id = ? WHERE customer_id = ? "
        "AND turn_id IN (SELECT turn_id FROM turns WHERE conversation_id = ?)",
        [named, before, head["conversation_id"]],
    )
    transaction.execute(
        "DELETE FROM customers WHERE customer_id = ? AND NOT EXISTS (SELECT 1 FROM conversations WHERE customer_id = ?)",
        [before, before],
    )
    return ["the customer is named now"]


def _tell_consent(
    transaction: Transaction, held: Sequence[Row], of_theirs: Sequence[Row], imported: ImportedConversation
) -> list[str]:
    """Take over what a line tells of consent: a yes for the version that holds its words, a no for every version of theirs.

    A no that is recorded for any of these stays: a file may be older than it.
    """
    if imported.consent is Consent.YES and _has_no(of_theirs):
        return ["consent stays no: a line that says yes may be older; change it where the customer said so"]
    reached = {Consent.YES: held, Consent.NO: of_theirs, Consent.UNKNOWN: ()}[imported.consent]
    changed = [head for head in reached if head["consent"] != imported.consent]
    for head in changed:
        transaction.execute(
            "UPDATE conversations SET consent = ? WHERE conversation_id = ?", [imported.consent, head["conversation_id"]]
        )
    before = dict.fromkeys(str(head["consent"]) for head in changed)
    return [f"consent changed from {each} to {imported.consent}" for each in before]


def _has_no(versions: Sequence[Row]) -> bool:
    return any(version["consent"] == Consent.NO for version in versions)


def _turns(transaction: Transaction, conversation_id: str) -> list[Row]:
    return transaction.query(
        "SELECT turn_id, parent_turn_id, role, content, extra_json, status FROM turns WHERE conversation_id = ? ORDER BY turn_seq",
        [conversation_id],
    )


def _recorded(turns: Sequence[Row], told: Sequence[ChatMessage]) -> _Recorded:
    """Follow the told messages through every branch of the recorded turns, past turns in which nothing was said."""
    by_id = {str(turn["turn_id"]): turn for turn in turns}
    children: dict[str | None, list[Row]] = {}
    for turn in turns:
        children.setdefault(str(turn["parent_turn_id"]) if turn["parent_turn_id"] else None, []).append(turn)

    def said_after(parents: Sequence[str | None]) -> list[Row]:
        found: list[Row] = []
        waiting = list(parents)
        while waiting:
            for turn in children.get(waiting.pop(), []):
                found.append(turn) if _was_said(turn) else waiting.append(str(turn["turn_id"]))
        return found

    ends: list[str | None] = [None]
    count = 0
    for message in told:
        wanted = _said_text(message)
        next_ends: list[str | None] = [
            str(turn["turn_id"]) for turn in said_after(ends) if _said_text(_message(turn)) == wanted
        ]
        if not next_ends:
            break
        ends = next_ends
        count += 1
    tip = _said_before(by_id, str(turns[-1]["turn_id"]) if turns else None)
    end = tip[-1] if tip and tip[-1] in ends else ends[-1]
    path = _said_before(by_id, end)[:count] if count else []
    return _Recorded(tuple(path), (tip[-1] if tip else None) == end, any(turn["status"] in OPEN_STATUSES for turn in turns))


def _said_before(by_id: Mapping[str, Row], turn_id: str | None) -> list[str]:
    """Return the turns that were said on the way to a turn, it included, oldest first."""
    found: list[str] = []
    # No longer than there are turns: one that was made to follow itself would never end.
    for _ in by_id:
        if turn_id is None:
            break
        turn = by_id[turn_id]
        if _was_said(turn):
            found.append(turn_id)
        turn_id = str(turn["parent_turn_id"]) if turn["parent_turn_id"] else None
    return found[::-1]


def _was_said(turn: Row) -> bool:
    return is_said(TurnStatus(str(turn["status"])), _message(turn))


def _message(turn: Row) -> ChatMessage:
    return ChatMessage(Role(str(turn["role"])), str(turn["content"]), str(turn["extra_json"]))


def _said_text(message: ChatMessage) -> str | tuple[str, str]:
    return canonical_json(said_in(message)) if message.extra_json else (message.role.value, message.content)


def _same_tools(one: str, two: str) -> bool:
    if one == two:
        return True
    values: list[Json] = [json.loads(text) if text else None for text in (one, two)]
    return canonical_json(values[0]) == canonical_json(values[1])


def _labels_text(imported: ImportedConversation) -> str:
    return json.dumps(dict(imported.labels), ensure_ascii=False, sort_keys=True)


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:24]
