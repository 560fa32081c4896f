"""Whole files into the record, in constant memory.

In: paths. Out: counts and the problems by file and line. A bad line never stops the good ones. Several lines go in with one
short transaction, so that the chat waits for milliseconds; an import that was killed has lost at most the open one, and
running it again completes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conversations.exchange.arrivals import Arrival, enter
from conversations.exchange.formats import MAX_LINE_BYTES, ImportedConversation, parse_line
from conversations.exchange.line_facts import LineRejected
from conversations.exchange.line_files import FileLine, check_readable, lines_of
from conversations.language import language_of
from conversations.messages import Role
from conversations.store import Record

ProblemVerdict = Literal["reject", "repair", "flag"]
# Of each verdict, so that many repairs do not push out the rejected lines.
MAX_PROBLEMS = 10_000
# About 20 milliseconds of writing.
_BATCH_TURNS = 400
_BATCH_BYTES = 1024 * 1024
# Enough to tell, and twice as fast as all that `language` would read.
_LANGUAGE_CHARACTERS = 250
_REASONS = 20


@dataclass(frozen=True)
class Problem:
    """Something about one line that a person should know."""

    file: str
    line: int
    verdict: ProblemVerdict
    reason: str


@dataclass
class ImportCounts:
    """What an import did, added up over its files. `problems_left_out` counts those beyond the first MAX_PROBLEMS of a verdict."""

    files: int = 0
    lines: int = 0
    conversations: int = 0
    turns: int = 0
    already_present: int = 0
    repaired: int = 0
    flagged: int = 0
    rejected: int = 0
    problems_left_out: int = 0
    problems: list[Problem] = field(default_factory=list)

    def tell(self, path: Path, number: int, verdict: ProblemVerdict, reason: str) -> None:
        """Count a problem, and keep it while there are not too many."""
        match verdict:
            case "reject":
                self.rejected += 1
                so_far = self.rejected
            case "repair":
                self.repaired += 1
                so_far = self.repaired
            case "flag":
                self.flagged += 1
                so_far = self.flagged
        if so_far <= MAX_PROBLEMS:
            self.problems.append(Problem(str(path), number, verdict, reason))
        else:
            self.problems_left_out += 1


@dataclass(frozen=True)
class _ReadLine:
    """A line that was read and waits for its transaction: a conversation with its language, or the reason against it."""

    path: Path
    number: int
    found: ImportedConversation | LineRejected | None
    language: str = ""


def import_files(record: Record, paths: Sequence[Path]) -> ImportCounts:
    """Import JSON Lines files.

    Raises OperatorError for a file that cannot be read, before anything of any file goes in.
    """
    for path in paths:
        check_readable(path)
    counts = ImportCounts()
    batch: list[_ReadLine] = []
    turns = size = 0
    for path in paths:
        counts.files += 1
        for line in lines_of(path, max_line_bytes=MAX_LINE_BYTES):
            counts.lines += 1
            read = _read(path, line)
            batch.append(read)
            size += len(line.content)
            turns += len(read.found.messages) if isinstance(read.found, ImportedConversation) else 1
            if turns >= _BATCH_TURNS or size >= _BATCH_BYTES:
                _enter_batch(record, counts, batch)
                batch.clear()
                turns = size = 0
    _enter_batch(record, counts, batch)
    return counts


def _read(path: Path, line: FileLine) -> _ReadLine:
    if line.refused:
        return _ReadLine(path, line.number, LineRejected(line.refused))
    if not line.content.strip():
        return _ReadLine(path, line.number, None)
    try:
        found = parse_line(line.content)
    except LineRejected as rejection:
        return _ReadLine(path, line.number, rejection)
    return _ReadLine(path, line.number, found, found.language or language_of(_customer_words(found)))


def _customer_words(imported: ImportedConversation) -> str:
    words = ""
    for message in imported.messages:
        if message.role is Role.USER:
            words += message.content[:_LANGUAGE_CHARACTERS] + "\n"
        if len(words) > _LANGUAGE_CHARACTERS:
            break
    return words[:_LANGUAGE_CHARACTERS]


def _enter_batch(record: Record, counts: ImportCounts, batch: Sequence[_ReadLine]) -> None:
    """Enter the lines of a batch in one transaction, then count them in their order."""
    arrivals: dict[int, Arrival | LineRejected] = {}
    if any(isinstance(read.found, ImportedConversation) for read in batch):
        with record.write() as transaction:
            for place, read in enumerate(batch):
                if isinstance(read.found, ImportedConversation):
                    try:
                        arrivals[place] = enter(transaction, read.found, read.language)
                    except LineRejected as rejection:
                        arrivals[place] = rejection
    for place, read in enumerate(batch):
        _count(counts, read, arrivals.get(place))


def _count(counts: ImportCounts, read: _ReadLine, arrival: Arrival | LineRejected | None) -> None:
    if isinstance(read.found, LineRejected):
        counts.tell(read.path, read.number, "reject", str(read.found))
    elif isinstance(arrival, LineRejected):
        counts.tell(read.path, read.number, "reject", str(arrival))
    elif read.found is None or arrival is None:
        counts.tell(read.path, read.number, "repair", "an empty line, left out")
    else:
        if read.found.repairs:
            counts.tell(read.path, read.number, "repair", _listed(read.found.repairs))
        flags = [*read.found.flags, *arrival.notes]
        if flags:
            counts.tell(read.path, read.number, "flag", "; ".join(flags))
        counts.conversations += arrival.conversations
        counts.turns += arrival.turns
        counts.already_present += not arrival.conversations and not arrival.turns


def _listed(reasons: Sequence[str]) -> str:
    """Return reasons in one line; a conversation of thousands of messages may have as many."""
    more = [f"and {len(reasons) - _REASONS} more"] if len(reasons) > _REASONS else []
    return "; ".join([*reasons[:_REASONS], *more])
