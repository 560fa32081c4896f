"""What the stage `evaluate` promises: everybody is asked the same once, every row says all, and a failure is no answer."""

import json
from collections import Counter
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import JUDGE, QUESTIONS, small_run
from tiny_student import tiny_student
from trained_run import TAUGHT, measured_run, trained

from conversations import decisions, erasure, releases
from conversations.errors import OperatorError, OutsideError
from conversations.releases import ReleaseKind
from conversations.serving import digest_of_weights
from distill.evaluation.answering.contestants import register_candidate
from distill.evaluation.answering.taken import weights_bytes, weights_bytes_of
from distill.evaluation.scoring.metric import quality_metrics_of
from distill.rows import AnswerRow, Task, read_rows
from distill.run import Stage, new_run, read_json

# The models that redact and embed take seconds to load.
pytestmark = pytest.mark.slow
JUDGE_OF_ANSWERS = JUDGE + "reject_worse_than_logged = false\n"
NEVER_TWICE = "an answer that was given is asked for again"


class Killed(Exception):
    """Ends an evaluation at once, as a kill does."""


def test_every_student_answers_every_decision_once_and_the_rows_say_how(tmp_path: Path) -> None:
    with measured_run(tmp_path) as measured:
        measured.memory = {"memory_bytes": 123, "gpu_memory_bytes": 456}
        measured.load()
        measured.student.answers = {measured.candidate: TAUGHT, measured.base: "I cannot help with that, sorry."}
        manifest = measured.evaluate()
        tested = measured.test_rows
        assert len(tested) >= 2 and manifest.counts.taken_in == manifest.counts.accepted == 3 * len(tested)
        asked = Counter((str(body["model"]), str(body["prompt"])) for body in measured.student.requests)
        assert len(asked) == 2 * len(tested) and set(asked.values()) == {1}, NEVER_TWICE

        rows = {(row.decision_id, row.model): row for row in measured.rows}
        assert len(rows) == 3 * len(tested)
        for row in tested:
            candidate, base, teacher = (rows[row.decision_id, model] for model in ("candidate", "base", "teacher"))
            assert (candidate.text, teacher.text, candidate.finish_reason) == (TAUGHT, TAUGHT, "stop")
            assert candidate.scores["teacher_likeness"] == candidate.scores["teacher_bleu"] == 1
            assert candidate.scores["teacher_similarity"] == pytest.approx(1, abs=1e-6)
            assert teacher.scores["teacher_likeness"] is None and teacher.scores["teacher_similarity"] is None
            assert (base.scores["refusal_rate"], candidate.scores["refusal_rate"]) == (1, 0)
            assert (
                candidate.completion_tokens == 6
                and candidate.prompt_tokens
                and candidate.latency_ms
                and candidate.first_token_ms
            )
            assert candidate.task is row.task and candidate.turn_depth == row.turn_depth
        for model in ("candidate", "base"):
            assert sum(row.timed for row in rows.values() if row.model == model) == 1
        taken = read_json(measured.run.folder / "evaluate" / "taken.json")
        told = dict(taken["candidate"])
        assert (told["memory_bytes"], told["gpu_memory_bytes"], told["turns_together"]) == (123, 456, len(tested) - 1)
        assert told["weights_bytes"] == weights_bytes(tmp_path / "tiny") + 70
        kept = decisions.answers(measured.small.record, tested[0].decision_id)
        assert {(each.author_name, each.content) for each in kept if each.author is decisions.AnswerAuthor.STUDENT} == {
            (measured.candidate, TAUGHT), (measured.base, "I cannot help with that, sorry."),
        }  # fmt: skip


@pytest.mark.parametrize("answers_before", [1, 3])
def test_an_evaluation_that_was_killed_goes_on_where_it_was_and_asks_nothing_twice(
    tmp_path: Path, answers_before: int
) -> None:
    with measured_run(tmp_path) as measured:
        # Characters that some functions take for the end of a line.
        measured.student.answer = "A line\u2028in two, and\x85more."
        seen = 0

        def die(stage: Stage, share: float, note: str) -> None:
            nonlocal seen
            seen += "/" in note
            if seen == answers_before:
                raise Killed

        with pytest.raises(Killed):
            measured.evaluate(die)
        assert len(measured.student.requests) == answers_before and not measured.run.is_complete(Stage.EVALUATE)
        journal = measured.run.folder / "evaluate" / ".answered.jsonl"
        # The line after the last whole one, as a kill in mid-write leaves it.
        journal.write_text(journal.read_text(encoding="utf-8") + '{"model": "candidate", "tim', encoding="utf-8")
        measured.load()
        measured.evaluate()
        asked = Counter((str(body["model"]), str(body["prompt"])) for body in measured.student.requests)
        assert len(asked) == 2 * len(measured.test_rows) and set(asked.values()) == {1}, NEVER_TWICE
        assert len(measured.rows) == 3 * len(measured.test_rows)


def test_an_answer_that_could_not_be_had_is_a_failure_without_scores_and_is_asked_for_again(tmp_path: Path) -> None:
    with measured_run(tmp_path) as measured:
        measured.student.refuses_with = 400
        manifest = measured.evaluate()
        students = [row for row in measured.rows if row.model != "teacher"]
        assert manifest.counts.unscored == len(students) > 0
        assert all(row.scores == {} and row.text == "" and "as scripted" in row.failure for row in students)
        # Neither as an answer nor as one of those that were given together.
        assert not (measured.run.folder / "evaluate" / ".answered.jsonl").exists()
        taken = read_json(measured.run.folder / "evaluate" / "taken.json")
        told = dict(taken["candidate"])
        assert told["memory_bytes"] is None and (told["turns_together"], told["seconds_together"]) == (0, 0)


def test_who_is_erased_while_students_answer_is_in_no_file_and_the_others_are_measured(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(by_body=lambda body: Act('{"grade": 5, "better": "tie", "why": "so"}')) as judge,
        measured_run(tmp_path, more=JUDGE_OF_ANSWERS.format(base_url=judge.base_url)) as measured,
    ):
        gone, *others = measured.test_rows
        (owner,) = measured.small.record.query(
            "SELECT customer_id FROM conversations WHERE conversation_id = ?", [gone.conversation_id]
        )

        def erase(stage: Stage, share: float, note: str) -> None:
            if "/" in note and decisions.decisions(measured.small.record, gone.conversation_id):
                erasure.erase_customer(measured.small.record, str(owner["customer_id"]), actor="test")

        manifest = measured.evaluate(erase)
        assert {row.decision_id for row in measured.rows} == {row.decision_id for row in others}
        assert (manifest.counts.taken_in, manifest.details["decisions"]) == (3 * len(others), len(others))
        assert others[0].decision_id in (measured.run.folder / "evaluate" / "judged.jsonl").read_text(encoding="utf-8")
        held = [path for path in measured.run.folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
        assert not [path.name for path in held if gone.decision_id.encode() in path.read_bytes()]
        assert decisions.answers(measured.small.record, others[0].decision_id)


def test_a_teachers_answer_that_nobody_waited_for_has_no_time(tmp_path: Path) -> None:
    with measured_run(tmp_path) as measured:
        taught = list(read_rows(measured.run.folder / "teach" / "answers.jsonl", AnswerRow))
        free = measured.test_rows[0].decision_id
        # As what a person gave stands there, and what came in a batch.
        untimed = [row.model_copy(update={"latency_ms": 0.0}) if row.decision_id == free else row for row in taught]
        measured.run.write_rows(Stage.TEACH, "answers.jsonl", untimed)
        measured.evaluate()
        teachers = {row.decision_id: row for row in measured.rows if row.model == "teacher"}
        told = teachers.pop(free)
        assert (told.timed, told.latency_ms, told.prompt_tokens, told.completion_tokens) == (False, None, None, None)
        assert teachers and all(row.timed and row.latency_ms and row.completion_tokens for row in teachers.values())


def test_nobody_who_loads_the_candidate_is_said_and_exits_with_three(tmp_path: Path) -> None:
    with measured_run(tmp_path) as measured:
        releases.forget_load(measured.small.record, "scripted", measured.candidate)
        with pytest.raises(OutsideError, match=f"nobody loaded the release '{measured.candidate}' within 1 s") as failure:
            measured.evaluate()
        assert failure.value.exit_code == 3 and measured.student.requests == []


@pytest.mark.parametrize(
    ("weights", "kind", "merged", "expected", "folder"),
    [
        ("adapter", "lora", False, ReleaseKind.LORA, "adapter"),
        ("adapter", "lora", True, ReleaseKind.MERGED, "merged"),
        ("checkpoint", "full", False, ReleaseKind.FULL, "checkpoint"),
    ],
)
def test_a_candidate_is_released_as_it_was_trained_and_a_whole_one_needs_no_base(
    tmp_path: Path, weights: str, kind: str, merged: bool, expected: ReleaseKind, folder: str
) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small:
        tiny_student(tmp_path / "no-student")
        with new_run(small.record, small.settings) as run:
            trained(run, weights, kind, merged)
            name = register_candidate(run)
            assert register_candidate(run) == name
            release = releases.release(small.record, name)
            place = run.folder / "train" / folder
            assert (release.kind, release.weights_path) == (expected, str(place))
            assert [each.release_id for each in releases.wanted(small.record)] == [name]
            base, own = weights_bytes(tmp_path / "no-student"), weights_bytes(place)
            assert base and own and weights_bytes_of(run, name) == (base + own if expected is ReleaseKind.LORA else own)
            if expected is not ReleaseKind.LORA:
                assert release.weights_digest == digest_of_weights(place)
                (place / "model.safetensors").write_bytes(b"changed")
                assert release.weights_digest != digest_of_weights(place)


def test_weights_that_are_gone_are_said_before_a_release_of_nothing_is_made(tmp_path: Path) -> None:
    with small_run(tmp_path, "http://127.0.0.1:9/v1") as small, new_run(small.record, small.settings) as run:
        trained(run)
        (run.folder / "train" / "adapter" / "adapter_model.safetensors").unlink()
        with pytest.raises(OperatorError, match=r"adapter_model.safetensors: no such file; expected the weights"):
            register_candidate(run)
        assert releases.releases(small.record) == []


# An example of a file, what the teacher says of it, what the student says, and what that is worth.
TASKS = {
    "qa": (
        {"question": "Who won the game?", "answers": ["The Broncos", "Denver"]},
        "Denver",
        "broncos",
        {"exact_match": 1, "token_f1": 1},
    ),
    "summarization": (
        {"document": "Police killed the gunman after a long night in the town.", "summary": "police killed the gunman"},
        "Police killed a gunman.",
        "the gunman kill police",
        {"reference_rouge_1": 1, "reference_rouge_l": 0.5},
    ),
    "nli": (
        {"premise": "A cat sleeps.", "hypothesis": "An animal rests.", "label": "entailment"},
        "entailment",
        "Entailment.",
        {"nli_accuracy": 1},
    ),
    "math": (
        {"question": "What is 6 times 7?", "answer": "6 * 7 = 42\n#### 42"},
        "6 times 7 is 42, so the answer is 42.",
        "That is 42.",
        {"math_accuracy": 1},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_data_sets_out_of_files_are_scored_as_their_task_wants_it(tmp_path: Path, task: str) -> None:
    example, taught, answer, expected = TASKS[task]
    said = next(key for key in ("question", "document", "premise") if key in example)
    # Examples that are alike are twins, and no twin of a held-out one is learnt.
    lines = [{**example, said: f"{question} {example[said]}"} for question in QUESTIONS[:4]]
    for name, some in (("train", lines[:2]), ("test", lines[2:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some), encoding="utf-8")
    more = f'[datasets]\ntask = "{task}"\ntrain = "train.jsonl"\ntest = "test.jsonl"\n'
    metric = f'quality_metric = "{quality_metrics_of(Task(task))[0]}"\n'
    with measured_run(tmp_path, more=more, evaluate=metric, taught=taught) as measured:
        measured.student.answer = answer
        measured.evaluate()
        found = [row for row in measured.rows if row.model == "candidate"]
        assert found and all(row.task.value == task for row in found)
        for row in found:
            assert {name: row.scores[name] for name in expected} == expected
            assert row.scores["fact_accuracy"] is None and row.scores["judge_grade"] is None
            assert (row.scores["token_f1"] is None) is (task != "qa")
