"""Conversations and their turns: begun before the first token exists, finished whatever happens.

In: what a customer or a student said. Out: frozen values. Every way out of a turn leaves a status; a failure is never text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from conversations.entry import insert_conversation, insert_turn, turn_hash
from conversations.errors import OperatorError
from conversations.language import language_of
from conversations.messages import (
    Author,
    Consent,
    ConversationState,
    Json,
    Role,
    TurnStatus,
    Vote,
    check_storable,
    new_name,
    utc_now,
    utc_text,
)
from conversations.processes import is_alive, process_token
from conversations.store import Cell, Record, Row, Transaction

# Longer than any answer may take; nobody can tell whether a process on another machine still lives.
ANSWER_HOURS = 1.0


@dataclass(frozen=True)
class Conversation:
    """One customer's dialogue."""

    conversation_id: str
    customer_id: str
    channel: str
    state: ConversationState
    consent: Consent
    release_id: str | None
    labels: Mapping[str, Json]
    language: str
    flagged_reason: str | None
    created_at_utc: str
    updated_at_utc: str


@dataclass(frozen=True)
class Turn:
    """One message in a conversation, with how it came to be."""

    turn_id: str
    conversation_id: str
    parent_turn_id: str | None
    position: int
    role: Role
    author: Author
    status: TurnStatus
    content: str
    extra_json: str
    release_id: str | None
    prompt_version: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_token_ms: float | None
    latency_ms: float | None
    failure_code: str | None
    created_at_utc: str
    finished_at_utc: str | None
    vote: Vote | None
    mean_token_logprob: float | None = None


@dataclass(frozen=True)
class ReplyMeasures:
    """What serving a reply took. Times in milliseconds from the request's start."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_ms: float | None = None
    latency_ms: float | None = None
    mean_token_logprob: float | None = None


class ReplyInProgress(Exception):
    """The conversation already has an answer on its way."""


TURN_COLUMNS = """t.turn_id, t.conversation_id, t.parent_turn_id, t.position, t.role, t.author, t.status, t.content,
    t.extra_json, t.release_id, t.prompt_version, t.prompt_tokens, t.completion_tokens, t.first_token_ms, t.latency_ms,
    t.failure_code, t.created_at_utc, t.finished_at_utc, t.mean_token_logprob,
    (SELECT vote FROM feedback f WHERE f.turn_id = t.turn_id LIMIT 1) AS vote"""


def create_conversation(
    record: Record,
    *,
    customer_id: str,
    channel: str,
    consent: Consent = Consent.UNKNOWN,
    release_id: str | None = None,
) -> Conversation:
    """Begin a conversation of a customer and return it."""
    now = utc_now()
    conversation_id = new_name("conversation")
    with record.write() as transaction:
        insert_conversation(
            transaction,
            conversation_id=conversation_id,
            customer_id=customer_id,
            created_at_utc=now,
            more={"channel": channel, "state": ConversationState.BOT, "consent": consent, "release_id": release_id},
        )
    return conversation(record, conversation_id)


def conversation(record: Record, conversation_id: str) -> Conversation:
    """Return a conversation.

    Raises OperatorError when there is none of that name.
    """
    row = record.one("SELECT * FROM conversations WHERE conversation_id = ?", [conversation_id])
    if row is None:
        raise OperatorError(
            f"no conversation {conversation_id!r} in {record.path}; `conversations search` or the console list them"
        )
    return conversation_of(row)


def conversation_of(row: Row) -> Conversation:
    """Build a conversation from a row of its table."""
    return Conversation(
        conversation_id=str(row["conversation_id"]),
        customer_id=str(row["customer_id"]),
        channel=str(row["channel"]),
        state=ConversationState(str(row["state"])),
        consent=Consent(str(row["consent"])),
        release_id=_text(row["release_id"]),
        labels=json.loads(str(row["labels_json"])),
        language=str(row["language"]),
        flagged_reason=_text(row["flagged_reason"]),
        created_at_utc=str(row["created_at_utc"]),
        updated_at_utc=str(row["updated_at_utc"]),
    )


def hold_release(record: Record, conversation_id: str, release_id: str) -> None:
    """Note the release that a conversation stays with."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE conversations SET release_id = ? WHERE conversation_id = ?", [release_id, conversation_id]
        )


def set_consent(record: Record, conversation_id: str, consent: Consent) -> None:
    """Note whether the customer now agrees that the conversation may be learnt from."""
    with record.write() as transaction:
        transaction.execute("UPDATE conversations SET consent = ? WHERE conversation_id = ?", [consent, conversation_id])


def append_message(record: Record, conversation_id: str, role: Role, author: Author, content: str) -> Turn:
    """Append a finished message to the end of a conversation and return its turn."""
    now = utc_now()
    turn_id = new_name("turn")
    language = _language_now(record, conversation_id, content) if role is Role.USER else ""
    with record.write() as transaction:
        insert_turn(
            transaction,
            conversation_id=conversation_id,
            turn_id=turn_id,
            role=role,
            author=author,
            status=TurnStatus.COMPLETE,
            content=content,
            created_at_utc=now,
        )
        if language:
            transaction.execute(
                "UPDATE conversations SET language = ? WHERE conversation_id = ? AND language = ''",
                [language, conversation_id],
            )
    return turn(record, turn_id)


def _language_now(record: Record, conversation_id: str, content: str) -> str:
    """Return the language that the customer's words tell, unless it is known; "" while they are too few."""
    rows = record.query(
        "SELECT c.language, t.content FROM conversations c LEFT JOIN turns t ON t.conversation_id = c.conversation_id "
        "AND t.role = 'user' WHERE c.conversation_id = ? ORDER BY t.turn_seq LIMIT 10",
        [conversation_id],
    )
    if not rows or rows[0]["language"]:
        return ""
    return language_of("\n".join([*(str(row["content"] or "") for row in rows), content]))


def begin_reply(
    record: Record,
    conversation_id: str,
    *,
    question_turn_id: str,
    release_id: str,
    prompt_version: str,
    decoding: Mapping[str, Json],
) -> Turn:
    """Write the pending turn of a reply before its first token exists, and return it.

    A second reply to the same question is a branch beside the first. An open reply of a process that died is closed as
    interrupted, and so is one of this process, which begins a reply only where none of its own is on its way: it was left behind.
    Raises ReplyInProgress while another process writes one.
    """
    turn_id = new_name("turn")
    with record.write() as transaction:
        for row in transaction.query(
            "SELECT turn_id, process_token, created_at_utc FROM turns WHERE conversation_id = ? "
            "AND status IN ('pending', 'streaming')",
            [conversation_id],
        ):
            if row["process_token"] != process_token() and _is_being_written(row):
                raise ReplyInProgress(conversation_id)
            _interrupt(transaction, str(row["turn_id"]))
        insert_turn(
            transaction,
            conversation_id=conversation_id,
            turn_id=turn_id,
            role=Role.ASSISTANT,
            author=Author.STUDENT,
            status=TurnStatus.PENDING,
            content="",
            created_at_utc=utc_now(),
            parent_turn_id=question_turn_id,
            more={
                "release_id": release_id,
                "prompt_version": prompt_version,
                "decoding_json": json.dumps(dict(decoding), sort_keys=True),
                "process_token": process_token(),
            },
        )
    return turn(record, turn_id)


def save_partial(record: Record, turn_id: str, content: str, *, first_token_ms: float | None) -> None:
    """Keep what has been streamed so far, so that a killed process loses at most the last piece."""
    with record.write() as transaction:
        transaction.execute(
            "UPDATE turns SET status = 'streaming', content = ?, content_hash = ?, first_token_ms = ? "
            "WHERE turn_id = ? AND status IN ('pending', 'streaming')",
            [content, turn_hash(Role.ASSISTANT, content, ""), first_token_ms, turn_id],
        )


def finish_reply(
    record: Record,
    turn_id: str,
    *,
    status: TurnStatus,
    content: str,
    measures: ReplyMeasures | None = None,
    failure_code: str | None = None,
) -> Turn:
    """Close an open reply with its final status; a reply that is already closed stays as it is."""
    took = measures or ReplyMeasures()
    with record.write() as transaction:
        transaction.execute(
            "UPDATE turns SET status = ?, content = ?, content_hash = ?, prompt_tokens = ?, completion_tokens = ?, "
            "first_token_ms = COALESCE(?, first_token_ms), latency_ms = ?, mean_token_logprob = ?, "
            "failure_code = ?, finished_at_utc = ? "
            "WHERE turn_id = ? AND status IN ('pending', 'streaming')",
            [
                status,
                content,
                turn_hash(Role.ASSISTANT, content, ""),
                took.prompt_tokens,
                took.completion_tokens,
                took.first_token_ms,
                took.latency_ms,
                took.mean_token_logprob,
                failure_code,
                utc_now(),
                turn_id,
            ],
        )
    return turn(record, turn_id)


def interrupt_orphans(record: Record) -> int:
    """Mark the open replies of processes that have died as interrupted, and return how many there were."""
    open_rows = record.query(
        "SELECT turn_id, process_token, created_at_utc FROM turns WHERE status IN ('pending', 'streaming')"
    )
    orphans = [str(row["turn_id"]) for row in open_rows if not _is_being_written(row)]
    with record.write() as transaction:
        return sum(_interrupt(transaction, turn_id) for turn_id in orphans)


def _is_being_written(row: Row) -> bool:
    """Tell whether the process of an open reply still lives; one on another machine was last heard of when it began the reply."""
    began = str(row["created_at_utc"])
    is_recent = began >= utc_text(datetime.now(UTC) - timedelta(hours=ANSWER_HOURS))
    return is_alive(str(row["process_token"]), heard_at_utc=None if is_recent else began)


def _interrupt(transaction: Transaction, turn_id: str) -> int:
    return transaction.execute(
        "UPDATE turns SET status = 'interrupted', finished_at_utc = ? "
        "WHERE turn_id = ? AND status IN ('pending', 'streaming')",
        [utc_now(), turn_id],
    )


def turn(record: Record, turn_id: str) -> Turn:
    """Return a turn.

    Raises OperatorError when there is none of that name.
    """
    row = record.one(f"SELECT {TURN_COLUMNS} FROM turns t WHERE t.turn_id = ?", [turn_id])
    if row is None:
        raise OperatorError(f"no turn {turn_id!r} in {record.path}; `conversations show ID` lists the turns of one")
    return turn_of(row)


def all_turns(record: Record, conversation_id: str) -> list[Turn]:
    """Return every turn of a conversation, branches included, oldest first."""
    rows = record.query(
        f"SELECT {TURN_COLUMNS} FROM turns t WHERE t.conversation_id = ? ORDER BY t.turn_seq", [conversation_id]
    )
    return [turn_of(row) for row in rows]


def thread(record: Record, conversation_id: str) -> list[Turn]:
    """Return the turns that the customer sees: the newest one and its ancestors, oldest first."""
    return branch_to(all_turns(record, conversation_id))


def newest_questions(record: Record, count: int) -> list[Turn]:
    """Return what customers wrote last, the newest first, at most one message of each conversation."""
    rows = record.query(
        f"SELECT {TURN_COLUMNS} FROM turns t WHERE t.turn_seq IN (SELECT MAX(turn_seq) FROM (SELECT turn_seq, conversation_id "
        "FROM turns WHERE author = 'customer' AND content <> '' ORDER BY turn_seq DESC LIMIT ?) GROUP BY conversation_id) "
        "ORDER BY t.turn_seq DESC LIMIT ?",
        [20 * count, count],
    )
    return [turn_of(row) for row in rows]


def branch_to(turns: Sequence[Turn], turn_id: str | None = None) -> list[Turn]:
    """Return the branch that ends in a turn (the newest by default), oldest first."""
    by_id = {each.turn_id: each for each in turns}
    tip = by_id[turn_id] if turn_id else (turns[-1] if turns else None)
    branch: list[Turn] = []
    # The record lets no turn follow itself; `verify` names one that was made to.
    while tip is not None and len(branch) < len(turns):
        branch.append(tip)
        tip = by_id.get(tip.parent_turn_id) if tip.parent_turn_id else None
    return branch[::-1]


def vote_on(record: Record, turn_id: str, customer_id: str, vote: Vote, reason: str = "") -> None:
    """Record a customer's thumb on a turn of their own conversation; a second one replaces the first.

    Raises OperatorError for a turn that is not there or is somebody else's, and for a reason that cannot be stored.
    """
    check_storable(reason)
    with record.write() as transaction:
        own = transaction.query(
            "SELECT 1 FROM turns JOIN conversations USING (conversation_id) WHERE turn_id = ? AND customer_id = ?",
            [turn_id, customer_id],
        )
        if not own:
            raise OperatorError(f"no turn {turn_id!r} in a conversation of {customer_id!r}; a thumb is for one's own")
        transaction.execute(
            "INSERT INTO feedback VALUES (?, ?, ?, ?, ?) ON CONFLICT (turn_id, customer_id) "
            "DO UPDATE SET vote = excluded.vote, reason = excluded.reason, given_at_utc = excluded.given_at_utc",
            [turn_id, customer_id, vote, reason, utc_now()],
        )


def withdraw_vote(record: Record, turn_id: str, customer_id: str) -> None:
    """Take a customer's thumb back."""
    with record.write() as transaction:
        transaction.execute("DELETE FROM feedback WHERE turn_id = ? AND customer_id = ?", [turn_id, customer_id])


def conversations_of(record: Record, customer_id: str) -> list[Conversation]:
    """Return the conversations of a customer, the newest first."""
    rows = record.query(
        "SELECT * FROM conversations WHERE customer_id = ? ORDER BY created_at_utc DESC, conversation_id DESC",
        [customer_id],
    )
    return [conversation_of(row) for row in rows]


def turn_of(row: Row) -> Turn:
    """Build a turn from a row with TURN_COLUMNS."""
    return Turn(
        turn_id=str(row["turn_id"]),
        conversation_id=str(row["conversation_id"]),
        parent_turn_id=_text(row["parent_turn_id"]),
        position=int(row["position"] or 0),
        role=Role(str(row["role"])),
        author=Author(str(row["author"])),
        status=TurnStatus(str(row["status"])),
        content=str(row["content"]),
        extra_json=str(row["extra_json"]),
        release_id=_text(row["release_id"]),
        prompt_version=_text(row["prompt_version"]),
        prompt_tokens=_whole(row["prompt_tokens"]),
        completion_tokens=_whole(row["completion_tokens"]),
        first_token_ms=_number(row["first_token_ms"]),
        latency_ms=_number(row["latency_ms"]),
        failure_code=_text(row["failure_code"]),
        created_at_utc=str(row["created_at_utc"]),
        finished_at_utc=_text(row["finished_at_utc"]),
        vote=Vote(str(row["vote"])) if row["vote"] else None,
        mean_token_logprob=_number(row["mean_token_logprob"]),
    )


def _text(cell: Cell) -> str | None:
    return None if cell is None else str(cell)


def _whole(cell: Cell) -> int | None:
    return None if cell is None else int(cell)


def _number(cell: Cell) -> float | None:
    return None if cell is None else float(cell)
