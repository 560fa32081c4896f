"""What asking students promises: an answer counts for the release that gave it, and of the erased nothing is kept."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from small_run import QUESTIONS, SmallRun, small_run
from tiny_student import tiny_student

from conversations import erasure, releases
from conversations.decisions import Decision, Split, put_decisions
from conversations.messages import Role
from conversations.releases import ServerState
from distill.evaluation.answering.asking import Answers, ask_all
from distill.evaluation.answering.contestants import Contestant, StudentModel
from distill.rows import DatasetRow, LabelsRow, MessageRow
from distill.run import Run, Stage, new_run
from tests.support_bot.scripted_student import ScriptedStudent

ASKED = 4


@dataclass
class Asking:
    """A run with a test edition and a server of students; `at` has something happen behind the n-th answer."""

    small: SmallRun
    student: ScriptedStudent
    rows: list[DatasetRow] = field(default_factory=list)
    at: dict[int, Callable[[], object]] = field(default_factory=dict)
    run: Run | None = None
    answered: int = 0

    def announce(self, stage: Stage, share: float, note: str) -> None:
        self.answered += 1
        self.at.pop(self.answered, lambda: None)()

    def ask(self, **release_ids: str) -> Answers:
        """Ask these releases, as `distill evaluate` does."""
        assert self.run is not None
        (server,) = releases.servers(self.small.record)
        models: tuple[StudentModel, ...] = ("base", "candidate", "released")
        asked = [Contestant(model, release_ids[model], server) for model in models if model in release_ids]
        return asyncio.run(ask_all(self.run, self.rows, asked))

    @property
    def journal(self) -> str:
        assert self.run is not None
        return (self.run.folder / "evaluate" / ".answered.jsonl").read_text(encoding="utf-8")


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Asking]:
    student = ScriptedStudent()
    try:
        with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
            tiny_student(tmp_path / "tiny")
            table = "[evaluate]\ntimed_decisions = 1\nconcurrency = 1"
            text = small.settings_file.read_text(encoding="utf-8").replace("no-student", "tiny")
            small.settings_file.write_text(text.replace("[evaluate]", table), encoding="utf-8")
            releases.announce_server(
                small.record, server_id="s1", base_url=student.base_url, base="tiny", state=ServerState.READY
            )
            made = Asking(small, student)
            with new_run(small.record, small.settings, made.announce) as run:
                made.run, made.rows = run, edition(small, run)
                yield made
    finally:
        student.close()


def edition(small: SmallRun, run: Run) -> list[DatasetRow]:
    """The first questions of the record as decisions that are tested; each is of a customer of its own."""
    found = small.record.query("SELECT turn_id, conversation_id FROM turns WHERE role = 'user' ORDER BY turn_seq LIMIT 4")
    rows = []
    for place, turn in enumerate(found):
        name, talk = f"decision_{place:024x}", str(turn["conversation_id"])
        decision = Decision(name, talk, str(turn["turn_id"]), None, name, Split.TEST, "t", "h", run.run_id, "coverage")
        put_decisions(small.record, [decision])
        messages = (
            MessageRow(role=Role.USER, content=QUESTIONS[place]),
            MessageRow(role=Role.ASSISTANT, content="Wait 12 minutes."),
        )
        rows.append(
            DatasetRow(
                decision_id=name, conversation_id=talk, cluster_id=name, topic="t", weight=1.0, teacher="big", labels=LabelsRow(),
                messages=messages,
            )
        )  # fmt: skip
    assert len(rows) == ASKED
    return rows


def test_answers_of_a_release_that_left_service_since_count_for_nobody(asking: Asking) -> None:
    asking.student.answers = {"student-1": "I am the first.", "student-9": "I am the ninth."}
    asking.ask(candidate="student-2", released="student-1")
    assert len(asking.student.requests) == 2 * ASKED
    found = asking.ask(candidate="student-2", released="student-9")
    assert [body["model"] for body in asking.student.requests[2 * ASKED :]] == ["student-9"] * ASKED
    assert {each.generated.text for each in found.asked if each.model == "released"} == {"I am the ninth."}
    assert found.together["released"].turns == found.together["candidate"].turns == ASKED - 1
    # The base itself may be what is in service now.
    alone = asking.ask(candidate="student-2")
    assert {each.model for each in alone.asked} == set(alone.together) == {"candidate"}
    assert len(asking.student.requests) == 3 * ASKED


def test_an_erasure_while_students_answer_leaves_no_line_and_the_next_try_goes_on(asking: Asking) -> None:
    gone = asking.rows[-1]
    (owner,) = asking.small.record.query(
        "SELECT customer_id FROM conversations WHERE conversation_id = ?", [gone.conversation_id]
    )
    asking.at[1] = lambda: erasure.erase_customer(asking.small.record, str(owner["customer_id"]), actor="test")
    asking.ask(candidate="student-2")
    assert asking.answered == ASKED and asking.at == {}
    assert gone.decision_id not in asking.journal and asking.rows[0].decision_id in asking.journal
    # The edition may be cut before the journal is, by an erasure that was killed.
    asking.rows = asking.rows[1:-1]
    found = asking.ask(candidate="student-2")
    assert {each.generated.decision_id for each in found.asked} == {row.decision_id for row in asking.rows}
    assert len(asking.student.requests) == ASKED


def test_only_answers_that_were_given_count_as_given_together(asking: Asking) -> None:
    asking.at[2] = lambda: setattr(asking.student, "refuses_with", 400)
    found = asking.ask(candidate="student-2")
    assert [bool(each.generated.failure) for each in found.asked] == [False, False, True, True]
    assert found.together["candidate"].turns == 1
    measured = found.together["candidate"]
    assert asking.ask(candidate="student-2").together == {"candidate": measured}
    assert asking.ask(base="base-1").together == {}
    asking.student.refuses_with = None
    assert asking.ask(candidate="student-2").together["candidate"].turns == ASKED - 1
