"""Rows in and out of assemble, one at a time, so that fifty thousand conversations fit into memory.

In: the files of choose, teach and verify. Out: the row of a data set for a decision, and lines written so that a file is there
wholly or not at all. Nothing in a row depends on the time or on the run.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conversations.decisions import AnswerAuthor, Verdict
from conversations.messages import Role
from distill.dataset.assembling import refusals
from distill.rows import AnswerRow, ChosenRow, DatasetRow, MessageRow, VerdictRow, read_rows
from distill.run import Run, Stage


@dataclass(frozen=True)
class Sources:
    """What earlier stages said of the decisions, and what operators approved."""

    run: Run
    answers: dict[str, AnswerRow]
    verdicts: dict[str, VerdictRow]
    approved: frozenset[str]

    def chosen(self) -> Iterator[ChosenRow]:
        """Yield the decisions, in the order of their file."""
        return read_rows(self.run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow)

    def dataset_row(self, row: ChosenRow, *, as_unknown: bool = False) -> DatasetRow:
        """Return the row of a data set; `as_unknown` teaches it as an honest refusal."""
        if as_unknown:
            text = self.run.settings.assemble.unknown_answer
            return row_with(row, MessageRow(role=Role.ASSISTANT, content=text), teacher=refusals.TEACHER)
        answer = self.answers.get(row.decision_id)
        if answer is None:
            return row_with(row, MessageRow(role=Role.ASSISTANT, content=""), teacher=self.run.settings.teach.teacher)
        return row_with(
            row,
            MessageRow(role=Role.ASSISTANT, content=answer.text, extra_json=answer.extra_json),
            teacher=answer.teacher,
            weight=self.weight(row, answer.author, answer.answer_id),
            answer_id=answer.answer_id,
            passages=answer.passages,
            licence=answer.licence,
        )

    def weight(self, row: ChosenRow, author: AnswerAuthor, answer_id: str) -> float:
        """Return how much a row counts: what a person answered as `choose` says, what one approved as much, and never twice."""
        if author is not AnswerAuthor.TEACHER:
            return row.weight
        return self.run.settings.choose.person_weight if answer_id in self.approved else min(row.weight, 1.0)


def read_sources(run: Run, approved: Iterable[str]) -> Sources:
    """Read answers and verdicts; of several answers for a decision the one that the verdict names."""
    verdicts = {each.decision_id: each for each in read_rows(run.stage_folder(Stage.VERIFY) / "verdicts.jsonl", VerdictRow)}
    answers: dict[str, AnswerRow] = {}
    for each in read_rows(run.stage_folder(Stage.TEACH) / "answers.jsonl", AnswerRow):
        verdict = verdicts.get(each.decision_id)
        if each.decision_id not in answers or (verdict is not None and verdict.answer_id == each.answer_id):
            answers[each.decision_id] = each
    return Sources(run, answers, verdicts, frozenset(approved))


def is_accepted(verdict: VerdictRow | None) -> bool:
    """Tell whether verify accepted the answer."""
    return verdict is not None and verdict.verdict is Verdict.ACCEPTED


def row_with(
    row: ChosenRow,
    last: MessageRow,
    *,
    teacher: str,
    weight: float = 1.0,
    answer_id: str = "",
    passages: tuple[str, ...] = (),
    licence: Literal["yes", "unknown"] = "yes",
) -> DatasetRow:
    """Return the row of a data set for a decision and what is to be answered."""
    return DatasetRow(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        cluster_id=row.cluster_id,
        topic=row.topic,
        weight=weight,
        teacher=teacher,
        task=row.task,
        language=row.language,
        turn_depth=row.turn_depth,
        labels=row.labels,
        offered=row.offered,
        answer_id=answer_id,
        passages=passages,
        licence=licence,
        messages=(*row.messages, last),
    )


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write lines as they come, so that the file is there wholly or not at all, and return its path."""
    half = path.with_name(f".{path.name}.half")
    with half.open("w", encoding="utf-8", newline="\n") as out:
        for line in lines:
            out.write(line)
            out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    half.replace(path)
    return path
