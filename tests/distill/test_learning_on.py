"""Cycle after cycle a student learns on; each release says from what, and who learned of a person is known along the whole line."""

import json
from pathlib import Path

import pytest
from scripted_teacher import Act, ScriptedTeacher
from small_run import SmallRun, conversation, small_run
from test_dataset_replay import LATER, LATEST, STAGES, learnt_by, of_the_record, put, rows_of
from tiny_student import tiny_student
from typer.testing import CliRunner

from conversations import releases, runs, turns
from conversations.erasure import erase_customer
from conversations.errors import OperatorError
from conversations.lineage import releases_that_learned, runs_behind
from conversations.messages import utc_now
from conversations.releases import Release, ReleaseKind, ReleaseState
from conversations.store import Record
from distill import cycle
from distill.cli import app
from distill.evaluation.evaluate import register_candidate
from distill.run import Run, Stage
from support_bot.console.releases import show_releases

TRAIN = """[train]
start_from = "release"
replay_share = 0.4
rank = 2
alpha = 4
epochs = 1.0
threads = 1
[evaluate]"""


def one_cycle(small: SmallRun) -> tuple[Run, str, dict[str, object]]:
    """A cycle whose candidate is put into service without being measured; return run, release and what training told."""
    run, manifests = small.perform(*STAGES, Stage.TRAIN)
    release_id = register_candidate(run)
    releases.promote(small.record, release_id, actor="test", reason="test")
    runs.finish_run(small.record, run.run_id, state=runs.RunState.COMPLETE, outcome="promote")
    counts = manifests[-1].counts
    assert counts.taken_in == counts.accepted + counts.rejected + counts.unscored
    return run, release_id, dict(manifests[-1].details)


def used_in_training(record: Record, run: Run) -> set[str]:
    return {
        str(row["decision_id"])
        for row in record.query("SELECT decision_id FROM run_decisions WHERE run_id = ? AND used_as = 'train'", [run.run_id])
    }


@pytest.mark.slow
def test_three_cycles_learn_on_replay_what_was_and_whoever_is_erased_is_named_along_the_line(tmp_path: Path) -> None:
    with (
        ScriptedTeacher(lambda question, before: Act("Please wait 12 minutes.")) as teacher,
        small_run(tmp_path, teacher.base_url, teach="") as small,
    ):
        tiny_student(small.folder / "tiny")
        put(small, "no-student", "tiny")
        put(small, "[choose]\n", '[choose]\ntaught_before = "leave_out"\n')
        put(small, "[evaluate]", TRAIN)
        cycles = []
        for place, questions in enumerate(((), LATER, LATEST)):
            if questions:
                small.import_conversations([conversation(20 * place + at, text) for at, text in enumerate(questions)])
            cycles.append(one_cycle(small))
        names = [release_id for _, release_id, _ in cycles]
        assert [told["started_from"] for *_, told in cycles] == ["base", *names[:2]]
        shown = CliRunner().invoke(app, ["releases", "--settings", str(small.settings_file), "--json"])
        listed = {row["release_id"]: row["started_from"] for row in json.loads(shown.stdout)["releases"]}
        assert listed == dict(zip(names, ["base", *names[:2]], strict=True))
        # Other commands need the names, and a pipe has no more than 80 columns.
        told = CliRunner().invoke(app, ["releases", "--settings", str(small.settings_file)]).stdout
        assert all(name in told for run, name, _ in cycles for name in (run.run_id, name))
        assert f"<code>{names[1]}</code>" in show_releases(small.record)

        # Replayed rows count as learnt by the run, those that were not drawn do not.
        assert cycles[0][2]["replayed_rows"] == 0
        for run, _, told in cycles[1:]:
            waiting, drawn = rows_of(run, "replay"), (run.folder / "train" / "replayed.jsonl").read_text(encoding="utf-8")
            replayed = {json.loads(line)["decision_id"] for line in drawn.splitlines()}
            assert (told["replayed_rows"], told["replayable_rows"]) == (len(replayed), len(waiting)) and replayed
            assert used_in_training(small.record, run) == learnt_by(run) | of_the_record(replayed)

        # The second and the third release know what the first one learned of a person, replayed or not.
        first = cycles[0][0]
        person = sorted(learnt_by(first))[0]
        talk = next(row.conversation_id for row in rows_of(first, "train").values() if row.decision_id == person)
        erased = erase_customer(small.record, turns.conversation(small.record, talk).customer_id, actor="test")
        assert first.run_id in erased.runs and list(erased.releases) == names
        assert not [path for path in small.folder.rglob("*.jsonl") if person.encode() in path.read_bytes()]


@pytest.mark.slow
def test_what_keeps_a_release_from_learning_on_is_told_before_the_teacher_is_asked(tmp_path: Path) -> None:
    with ScriptedTeacher() as teacher, small_run(tmp_path, teacher.base_url) as small:
        put(small, "[evaluate]", TRAIN)
        gone = tmp_path / "gone"
        gone.mkdir()
        release = Release("r", None, "x", ReleaseKind.LORA, str(gone), "sha256:1", {}, utc_now(), ReleaseState.CANDIDATE)
        releases.register(small.record, release, actor="test", reason="test")
        releases.promote(small.record, "r", actor="test", reason="test")
        gone.rmdir()
        with pytest.raises(OperatorError, match=r"/gone: the weights of the release 'r' cannot learn on"):
            cycle.run_cycle(small.record, small.settings, lambda stage, share, note: None)
        assert teacher.seen == [] and runs.runs(small.record) == []


def test_a_release_answers_for_its_whole_line_and_not_for_its_neighbours(tmp_path: Path) -> None:
    with Record(tmp_path / "record.db") as record:
        line = {"a": None, "b": "a", "c": "b", "d": None, "e": "a"}
        for place, (name, start) in enumerate(line.items()):
            runs.begin_run(record, run_id=f"run-{name}", path="/r", settings_digest="d")
            runs.finish_run(record, f"run-{name}", state=runs.RunState.COMPLETE, outcome="promote")
            made = f"2026-08-0{place + 1}T00:00:00Z"
            release = Release(
                name, f"run-{name}", "x", ReleaseKind.LORA, "/w", "sha256:1", {}, made, ReleaseState.CANDIDATE, start
            )
            releases.register(record, release, actor="test", reason="test")
        assert runs_behind(record, "c") == ["run-a", "run-b", "run-c"]
        assert releases_that_learned(record, ["run-a"]) == ["a", "b", "c", "e"]
        assert releases_that_learned(record, ["run-b", "run-d"]) == ["b", "c", "d"]
        assert [each.start for each in releases.releases(record)] == ["a", "base", "b", "a", "base"]
