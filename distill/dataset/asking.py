"""What a teacher is asked: one request for each decision, named by the hash of everything that decides its answer.

In: chosen decisions and the settings. Out: requests. The logged history goes to the teacher byte for byte as `choose`
redacted it; an instruction and handbook passages go into a system message of their own, which the student never reads.
Calls nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Role, content_hash
from distill.dataset.handbook import Handbook, Passage
from distill.rows import ChosenRow
from distill.settings import DistillSettings, TeacherTable

# A question such as "and then?" is found by what was asked before it, which counts for less.
_EARLIER_WEIGHT = 0.4


@dataclass(frozen=True)
class TeacherRequest:
    """One question to one teacher. `knows` is the digest of the handbook that a handbook teacher answers from."""

    decision_id: str
    teacher: str
    model: str
    base_url: str
    temperature: float
    max_tokens: int
    messages: tuple[ChatMessage, ...]
    passages: tuple[str, ...] = ()
    knows: str = ""

    @property
    def request_hash(self) -> str:
        """The hash of everything that decides the answer: never the decision's name or its place."""
        return content_hash(
            [
                self.teacher,
                self.model,
                self.base_url,
                self.temperature,
                self.max_tokens,
                [message.as_openai() for message in self.messages],
                list(self.passages),
                self.knows,
            ]
        )

    def doubled(self) -> "TeacherRequest":
        """Return the request with twice the room for the answer."""
        return replace(self, max_tokens=self.max_tokens * 2)


def teacher_table(settings: DistillSettings, name: str) -> TeacherTable:
    """Return the settings of a teacher.

    Raises OperatorError when there is none of that name.
    """
    if name not in settings.teachers:
        near = get_close_matches(name, settings.teachers, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(settings.teachers))}"
        raise OperatorError(f"{settings.settings_file} [teach]: teacher = {name!r}: no table [teachers.{name}]; {hint}")
    return settings.teachers[name]


def requests_for(rows: Sequence[ChosenRow], settings: DistillSettings, name: str) -> list[TeacherRequest]:
    """Return what a teacher is asked for each row, in the rows' order.

    Raises OperatorError when the teacher is to read handbook passages and there is no handbook.
    """
    table = teacher_table(settings, name)
    handbook = Handbook.load(settings.handbook.path) if settings.handbook else None
    if table.handbook_passages and handbook is None:
        raise OperatorError(
            f"{settings.settings_file} [teachers.{name}]: handbook_passages = {table.handbook_passages} and no handbook; "
            "add the table [handbook] with its path, or set handbook_passages = 0"
        )
    passages: list[tuple[Passage, ...]] = [()] * len(rows)
    if table.handbook_passages and handbook is not None:
        passages = find_passages(rows, handbook, table.handbook_passages)
    return [
        TeacherRequest(
            decision_id=row.decision_id,
            teacher=name,
            model=table.model,
            base_url=table.base_url,
            temperature=table.temperature,
            max_tokens=table.max_answer_tokens,
            messages=_with_guidance(row, settings.teach.instruction, found),
            passages=tuple(passage.passage_hash for passage in found),
            knows=handbook.digest if handbook is not None and table.kind == "handbook" else "",
        )
        for row, found in zip(rows, passages, strict=True)
    ]


def find_passages(rows: Sequence[ChosenRow], handbook: Handbook, count: int) -> list[tuple[Passage, ...]]:
    """Return for each row the handbook passages nearest in meaning to its question, the nearest first."""
    if not rows:
        return []
    from distill.dataset.similarity import load_embedder

    embedder = load_embedder()
    passages = list(handbook.passages.values())
    known = embedder.embed([f"{passage.title}. {passage.text}" for passage in passages])
    asked = [[message.content for message in row.messages if message.role is Role.USER] for row in rows]
    likeness = embedder.embed([said[-1] if said else "" for said in asked]) @ known.T
    likeness += _EARLIER_WEIGHT * (embedder.embed([" ".join(said[-3:-1]) for said in asked]) @ known.T)
    nearest = (-likeness).argsort(axis=1, kind="stable")[:, :count]
    return [tuple(passages[int(column)] for column in columns) for columns in nearest]


def _with_guidance(row: ChosenRow, instruction: str, passages: Sequence[Passage]) -> tuple[ChatMessage, ...]:
    messages = tuple(message.message() for message in row.messages)
    parts = [instruction.strip()] if instruction.strip() else []
    if passages:
        listed = "\n\n".join(f"{passage.title}\n{passage.text}" for passage in passages)
        parts.append(
            f"Answer from these passages of the company's handbook. What they do not say you do not know.\n\n{listed}"
        )
    if not parts:
        return messages
    own = 1 if messages and messages[0].role is Role.SYSTEM else 0
    return (*messages[:own], ChatMessage(Role.SYSTEM, "\n\n".join(parts)), *messages[own:])
