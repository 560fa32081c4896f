"""What data sets out of files promise: every task goes through the same stages, bad lines are told, the test stays apart."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import SmallRun, small_run

from conversations import erasure
from conversations.errors import OperatorError, Refused
from conversations.exchange.line_facts import LineRejected
from conversations.messages import Role, Split
from conversations.tombstones import erased_among
from distill.dataset.choosing.files import plan_from_files
from distill.dataset.choosing.lines import read_example
from distill.evaluation.scoring.metric import quality_metrics_of
from distill.rows import ChosenRow, DatasetRow, Task, read_rows
from distill.run import STAGES, Stage

UP_TO_ASSEMBLE = STAGES[: STAGES.index(Stage.ASSEMBLE) + 1]
THINGS = (
    "amber lantern", "brass kettle", "copper whistle", "dusty ledger", "enamel mug", "felt slipper", "glass marble",
    "hemp rope", "iron skillet", "jade button", "knitted shawl", "linen napkin", "maple drawer", "nickel hinge",
    "oak ladder", "paper fan", "quartz clock", "rubber boot", "silver thimble", "tin soldier",
)  # fmt: skip


def line(task: Task, thing: str) -> dict[str, object]:
    first, second = thing.split()
    match task:
        case Task.QA:
            return {"question": f"Who left a {first} {second} behind {second}s?", "answer": f"Mr {first}"}
        case Task.SUMMARIZATION:
            return {
                "document": f"The {thing} was lost by a {first} man near {second} hill.",
                "summary": f"A {thing} got lost.",
            }
        case Task.NLI:
            return {"premise": f"My {thing} is {first} indeed", "hypothesis": f"Some {second} exists", "label": 0}
        case Task.MATH:
            return {"question": f"How much do {second} and {first} {second}s weigh?", "answer": "Nothing. #### 0"}
        case Task.CONVERSATION:
            return {
                "messages": [
                    {"role": "user", "content": f"Where did my {thing} go, and {second}s?"},
                    {"role": "assistant", "content": f"The {second} is in repair."},
                    {"role": "user", "content": f"When does {first} work on {thing} end?"},
                    {"role": "assistant", "content": "On Monday."},
                ]
            }


def taught(task: Task, question: str) -> str:
    """Answer as a teacher does: right, in other words than the file's."""
    match task:
        case Task.NLI:
            return "Entailment."
        case Task.MATH:
            return "Both are as light as air, so the answer is 0."
        case _:
            return f"That is {question.split()[-1]} surely."


def written(path: Path, lines: Sequence[Mapping[str, object] | str]) -> Path:
    path.write_text(
        "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines), encoding="utf-8"
    )
    return path


@contextmanager
def run_on_files(
    folder: Path, task: Task, base_url: str = "http://127.0.0.1:9/v1", **files: Sequence[object]
) -> Iterator[SmallRun]:
    folder.mkdir(exist_ok=True)
    more = f'[datasets]\ntask = "{task}"\n'
    for name, lines in files.items():
        written(folder / f"{name}-lines.jsonl", lines)  # type: ignore[arg-type]
        more += f'{name} = "{name}-lines.jsonl"\n'
    with small_run(folder, base_url, more=more) as small:
        text = small.settings_file.read_text(encoding="utf-8").replace('[handbook]\npath = "handbook"\n', "")
        metric = quality_metrics_of(task)[0]
        text = text.replace("[evaluate]", f'[evaluate]\nquality_metric = "{metric}"')
        small.settings_file.write_text(text, encoding="utf-8")
        yield small


@pytest.mark.parametrize("task", list(Task))
def test_every_task_goes_from_its_files_into_sets_and_no_row_is_lost(tmp_path: Path, task: Task) -> None:
    lines = [line(task, thing) for thing in THINGS]
    with (
        ScriptedTeacher(lambda question, before: Act(taught(task, question))) as teacher,
        run_on_files(tmp_path, task, teacher.base_url, train=[*lines[:14], "{no json"], test=lines[14:]) as small,
    ):
        run, manifests = small.perform(*UP_TO_ASSEMBLE)
        chosen = list(read_rows(run.folder / "choose/decisions.jsonl", ChosenRow))
        sets = {
            split: list(read_rows(run.folder / f"assemble/{split}.jsonl", DatasetRow))
            for split in ("train", "validation", "test")
        }
    turns = 2 if task is Task.CONVERSATION else 1
    assert len(chosen) == 20 * turns and manifests[0].counts.rejected_by_reason == {"line_rejected": 1}
    assert len(sets["test"]) == 6 * turns and sets["train"]
    for earlier, later in pairwise(manifests):
        assert later.counts.taken_in == (earlier.counts.accepted if later.stage is not Stage.ASSEMBLE else len(chosen))
    assert len(sets["train"]) + len(sets["validation"]) + manifests[-1].counts.rejected == 14 * turns
    assert {row.task for rows in sets.values() for row in rows} == {task}
    assert all(row.labels.reference and row.messages[0].role is Role.SYSTEM for row in sets["test"])
    given = {row.labels.reference for row in sets["train"]}
    assert not any(row.messages[-1].content in given for row in sets["train"])


def test_bad_lines_are_told_with_file_and_line_and_the_rest_goes_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        *(line(Task.NLI, thing) for thing in THINGS[:3]),
        {"premise": "It rains"},
        "[]",
        {"premise": "a", "hypothesis": "b", "label": 7},
    ]
    with run_on_files(tmp_path, Task.NLI, train=lines) as small:
        _, (manifest,) = small.perform(Stage.CHOOSE)
    assert manifest.counts.rejected_by_reason == {"line_rejected": 3} and manifest.counts.accepted == 3
    told = [record.getMessage() for record in caplog.records]
    assert "train-lines.jsonl:4: has no text under `hypothesis`; the line is left out" in told
    assert any(each.startswith("train-lines.jsonl:5: is list; expected an object") for each in told)
    assert any(each.startswith("train-lines.jsonl:6: `label` is 7; expected one of entailment") for each in told)


def test_what_the_test_file_holds_is_never_drawn_for_training(tmp_path: Path) -> None:
    twin = {"question": "who LEFT a tin soldier behind soldiers", "answer": "Mrs Tin"}
    with run_on_files(
        tmp_path, Task.QA,
        train=[*(line(Task.QA, thing) for thing in THINGS), {"question": "Who sang?", "answer": "He"}, twin],
        test=[line(Task.QA, THINGS[-1]), line(Task.QA, THINGS[0]), {"question": "who  sang?", "answer": "She"}],
    ) as small:  # fmt: skip
        plan = plan_from_files(small.record, small.settings)
    tested = [row for row in plan.rows if row.split is Split.TEST]
    assert len(tested) == 3 and plan.left_out == {"twin_of_test": 4}
    learnt = {row.messages[-1].content for row in plan.rows if row.split is not Split.TEST}
    assert not any(word in text for text in learnt for word in ("soldier", "amber", "sang"))
    assert not {row.cluster_id for row in tested} & {row.cluster_id for row in plan.rows if row.split is not Split.TEST}


def test_without_a_test_file_validation_is_the_test_and_a_lone_file_is_drawn_from(tmp_path: Path) -> None:
    lines = [line(Task.MATH, thing) for thing in THINGS]
    with run_on_files(tmp_path / "two", Task.MATH, train=lines[:15], validation=lines[15:]) as small:
        plan = plan_from_files(small.record, small.settings)
        assert {row.messages[-1].content for row in plan.rows if row.split is Split.TEST} == {
            each["question"] for each in lines[15:]
        }
    with run_on_files(tmp_path / "one", Task.MATH, train=lines) as small:
        drawn = {row.decision_id: row.split for row in plan_from_files(small.record, small.settings).rows}
        assert set(drawn.values()) >= {Split.TRAIN, Split.TEST} and len(drawn) == 20
        small.perform(Stage.CHOOSE)
        written(tmp_path / "one/train-lines.jsonl", [*lines[::-1], {"question": "How many moons does the hill have?"}])
        again = {row.decision_id: row.split for row in plan_from_files(small.record, small.settings).rows}
        assert len(again) == 21 and drawn.items() <= again.items()


def test_examples_are_entered_once_and_an_erased_person_does_not_come_back(tmp_path: Path) -> None:
    lines = [{**line(Task.QA, thing), "customer_id": f"p-{place}"} for place, thing in enumerate(THINGS[:5])]
    with run_on_files(tmp_path, Task.QA, train=lines) as small:
        small.perform(Stage.CHOOSE)
        run, (manifest,) = small.perform(Stage.CHOOSE)
        count = small.record.one("SELECT COUNT(*) AS n FROM conversations WHERE channel = 'dataset'")
        assert count == {"n": 5} and manifest.counts.accepted == 5
        names = {row.conversation_id for row in read_rows(run.folder / "choose/decisions.jsonl", ChosenRow)}
        erasure.erase_customer(small.record, "p-0", actor="test")
        assert len(erased_among(small.record, names)) == 1
        _, (manifest,) = small.perform(Stage.CHOOSE)
        assert (manifest.counts.accepted, manifest.counts.rejected_by_reason) == (4, {"no_consent": 1})


def test_personal_data_of_a_file_is_redacted_like_any_other(tmp_path: Path) -> None:
    lines = [{"question": "Is joe@example.org the one to ask about lamps?", "answer": "Yes, write to joe@example.org."}]
    with run_on_files(tmp_path, Task.QA, train=lines) as small:
        (row,) = plan_from_files(small.record, small.settings).rows
    assert "joe" not in row.model_dump_json()
    assert row.labels.reference == "Yes, write to <EMAIL_1>." and row.logged is not None


def test_a_record_that_tests_one_task_refuses_another_before_anybody_is_paid(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, run_on_files(
        tmp_path, Task.QA, teacher.base_url, train=[line(Task.QA, thing) for thing in THINGS]
    ) as small:  # fmt: skip
        small.perform(*UP_TO_ASSEMBLE)
        asked = len(teacher.seen)
        written(tmp_path / "train-lines.jsonl", [line(Task.MATH, thing) for thing in THINGS])
        text = small.settings_file.read_text(encoding="utf-8").replace('task = "qa"', 'task = "math"')
        small.settings_file.write_text(text, encoding="utf-8")
        with pytest.raises(OperatorError, match=r"holds rows of qa, and \[datasets\] task is math.*record of its own"):
            small.perform(Stage.CHOOSE)
        assert len(teacher.seen) == asked


def test_files_that_hold_no_question_or_are_not_there_are_errors(tmp_path: Path) -> None:
    with run_on_files(tmp_path, Task.QA, train=["{}"]) as small:
        with pytest.raises(Refused, match="1 line_rejected"):
            small.perform(Stage.CHOOSE)
        (tmp_path / "train-lines.jsonl").unlink()
        with pytest.raises(OperatorError, match=r"train-lines\.jsonl: no such file"):
            small.perform(Stage.CHOOSE)


@pytest.mark.parametrize(
    ("task", "fields", "asked", "reference"),
    [
        (
            Task.QA,
            {"question": "Q?", "context": ["a", "b"], "answers": {"text": ["one", "two"]}},
            "a\n\nb\n\nQuestion: Q?",
            "one",
        ),
        (Task.QA, {"question": "Q?", "answer": 12}, "Q?", "12"),
        (Task.SUMMARIZATION, {"article": "Long.", "highlights": "Short."}, "Long.", "Short."),
        (Task.NLI, {"premise": "p", "hypothesis": "h", "label": -1}, "Premise: p\nHypothesis: h", ""),
        (Task.NLI, {"premise": "p", "hypothesis": "h", "label": "Neutral"}, "Premise: p\nHypothesis: h", "neutral"),
        (Task.MATH, {"problem": "1+1", "solution": "2"}, "1+1", "2"),
    ],
)
def test_a_line_may_be_spelled_as_the_public_sets_spell_it(
    task: Task, fields: dict[str, object], asked: str, reference: str
) -> None:
    example = read_example(json.dumps(fields).encode(), task)
    said = {message.role: message.content for message in example.conversation.messages}
    assert said[Role.USER] == asked and said.get(Role.ASSISTANT, "") == reference


def test_a_question_that_is_no_text_is_rejected() -> None:
    with pytest.raises(LineRejected, match=r"`question` or `problem` holds dict|holds dict"):
        read_example(b'{"question": [{"a": 1}]}', Task.MATH)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"question": ["a", "b"], "answer": "c"}', "has 2 texts under `question`; expected one"),
        (b'{"question": "How much is it?", "answer": Infinity}', "is no JSON: Infinity"),
        (b'{"question": "How much is it?", "answer": 1e999}', "holds inf"),
    ],
)
def test_a_line_that_could_be_read_two_ways_or_holds_no_number_is_rejected(content: bytes, reason: str) -> None:
    with pytest.raises(LineRejected, match=reason):
        read_example(content, Task.QA)


def test_no_rows_of_the_handbook_are_added_to_a_data_set_of_files(tmp_path: Path) -> None:
    lines = [line(Task.QA, thing) for thing in THINGS]
    with (
        ScriptedTeacher(lambda question, before: Act(taught(Task.QA, question))) as teacher,
        run_on_files(tmp_path, Task.QA, teacher.base_url, train=lines[:14], test=lines[14:]) as small,
    ):
        text = small.settings_file.read_text(encoding="utf-8")
        small.settings_file.write_text(f'{text}\n[handbook]\npath = "handbook"\n', encoding="utf-8")
        _, (*_, manifest) = small.perform(*UP_TO_ASSEMBLE)
        assert manifest.details["study_rows"] == 0
