"""A study tries other settings, survives what happens to its trials and to itself, and writes the best as a settings file."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tiny_student import tiny_student, write_dataset

from conversations import runs
from conversations.errors import OperatorError
from conversations.settings import read_settings
from conversations.store import Record
from distill.run import Counts, Outcome, Run, Stage, new_run, open_run
from distill.settings import DistillSettings, TrainTable, TuneTable
from distill.training.tuning.noise import mean_over_seeds
from distill.training.tuning.settings_file import changed_settings
from distill.training.tuning.space import space_of
from distill.training.tuning.tune import Tuned, tune

SETTINGS = """# The settings of a test.
[record]
path = "record.db"  # beside this file
[student]
base = 'student'
profile = "cpu"
[prompt]
system = "You help."
max_prompt_tokens = 200
[runs]
folder = "runs"
[teachers.big]
base_url = "http://127.0.0.1:9/v1"
model = "big-1"
licence_allows_training = "yes"
[teach]
teacher = "big"
max_cost_usd = 0.0
max_calls = 1
[train]
rank = 4  # as small as it goes
alpha = 8
epochs = 1.0
learning_rate = 1e-3
rows_per_step = 4
token_budget_per_batch = 512
max_tokens = 256
validate_every_tokens = 400
checkpoint_every_steps = 1
threads = 1
[tune]
ranks = [2, 4]
epochs = [1.0, 2.0]
learning_rate_factors = [2.0, 30.0]
repeats = 1
[evaluate]
server_usd_per_hour = 0.1
[promote]
min_retained = 0.9
max_wrong_fact_rate = 0.1
max_loss_to_released = 0.02
"""
COUNTS = Counts(taken_in=0, accepted=0, rejected=0, unscored=0, rejected_by_reason={})


def settings_with(**changes: str) -> str:
    """Return the settings with the values of some keys changed; a key that is not there goes into [train]."""
    text = SETTINGS
    for key, value in changes.items():
        text, found = re.subn(rf"(?m)^{key} = [^#\n]*", f"{key} = {value}", text, count=1)
        text = text if found else text.replace("[train]\n", f"[train]\n{key} = {value}\n")
    return text


def ignore(_name: str, _share: float, _note: str) -> None:
    """Look away."""


def assembled_run(folder: Path, settings: str = SETTINGS) -> str:
    """Make a run that looks as if it had been assembled, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.toml").write_text(settings, encoding="utf-8")
    tiny_student(folder / "student")

    def assemble(run: Run) -> Outcome:
        write_dataset(run.stage_folder(Stage.ASSEMBLE) / "train.jsonl", 8)
        write_dataset(run.stage_folder(Stage.ASSEMBLE) / "validation.jsonl", 2, first=100)
        return Outcome(COUNTS)

    with Record(folder / "record.db") as record, new_run(record, settings_in(folder)) as run:
        run.perform(Stage.CHOOSE, lambda _: Outcome(COUNTS))
        run.perform(Stage.ASSEMBLE, assemble)
    return run.run_id


def settings_in(folder: Path) -> DistillSettings:
    return read_settings(DistillSettings, folder / "settings.toml")


@contextmanager
def opened(folder: Path, run_id: str) -> Iterator[Run]:
    with Record(folder / "record.db") as record, open_run(record, settings_in(folder), run_id) as run:
        yield run


def trials_of(folder: Path) -> list[dict[str, object]]:
    path = next(folder.glob("runs/run_*/tune/trials.jsonl"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Finished:
    """A study that nothing disturbed."""

    folder: Path
    run_id: str
    tuned: Tuned
    heard: frozenset[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    run_id = assembled_run(folder)
    heard: list[str] = []
    with opened(folder, run_id) as run:
        tuned = tune(run, 3, lambda name, _share, _note: heard.append(name))
    return Finished(folder, run_id, tuned, frozenset(heard))


@pytest.mark.slow
def test_best_of_a_study_is_never_worse_than_the_present_settings_and_it_is_said_how_sure_that_is(finished):
    found, tried = finished.tuned.as_json(), trials_of(finished.folder)
    assert [each["trial"] for each in tried] == [0, 1, 2]
    assert tried[0]["changes"] == {} and tried[0]["state"] == "complete"
    complete = [each["validation_nll"] for each in tried if each["state"] == "complete"]
    assert found["best_validation_nll"] == min(complete) <= found["present_validation_nll"] == tried[0]["validation_nll"]
    # The rate of the present settings is far too low for so tiny a student, so that something else is better.
    assert found["best_trial"] != 0
    assert found["better_by"]["seeds"] == 2 and found["better_by_anew"]["seeds"] == 1
    assert found["better_by_anew"]["value"] > 0
    assert finished.heard >= {"trial 0", "trial 1", "trial 2", "trial 0, seed 1", f"trial {found['best_trial']}, seed 1"}


@pytest.mark.slow
def test_best_settings_are_the_runs_own_file_with_only_train_keys_changed(finished):
    path, found = finished.tuned.settings_path, finished.tuned.as_json()
    settings, present = read_settings(DistillSettings, path), settings_in(finished.folder)
    assert settings.train.model_dump() == {**present.train.model_dump(), **found["best_changes"]}
    rest = {"settings_file", "train"}
    assert settings.model_dump(exclude=rest) == present.model_dump(exclude=rest)
    assert "# as small as it goes" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_study_leaves_a_picture_and_numbers_and_no_weights(finished):
    assert finished.tuned.plot_path.read_text(encoding="utf-8").startswith("<?xml")
    left = [path.name for path in finished.folder.glob("runs/*/tune/**/*") if path.is_file()]
    assert {"study.svg", "trials.jsonl", "best.settings.toml", "journal.log", "metrics.jsonl"} <= set(left)
    assert not [name for name in left if name.endswith((".safetensors", ".pt", ".npy"))]
    assert not [
        path for path in finished.folder.glob("runs/*/tune/**/trial.log") if "error" in path.read_text(encoding="utf-8")
    ]


@pytest.mark.slow
def test_trial_that_crashes_is_recorded_with_its_reason_and_the_study_goes_on(tmp_path):
    run_id = assembled_run(tmp_path)
    with opened(tmp_path, run_id) as run:
        # The second trial cannot write what it measures.
        (run.folder / "tune" / "trials" / "0001" / "metrics.jsonl").mkdir(parents=True)
        tuned = tune(run, 2, ignore)
    failed = [each for each in trials_of(tmp_path) if each["state"] == "failed"]
    assert [each["trial"] for each in failed] == [1] and "Is a directory" in failed[0]["reason"]
    assert tuned.best.trial == 0 and tuned.better_by is None
    assert tuned.as_json()["trials"]["failed"] == len(failed)


COMMAND = [sys.executable, "-c", "from distill.cli import main; main()", "tune"]


@pytest.mark.slow
def test_killed_study_goes_on_with_the_trial_it_was_at_and_tries_what_an_undisturbed_one_tries(tmp_path, finished):
    run_id = assembled_run(tmp_path, settings_with(repeats="0"))
    command = [*COMMAND, "--run", run_id, "--trials", "3", "--settings", str(tmp_path / "settings.toml"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as stopped:
        deadline = time.monotonic() + 400
        metrics = tmp_path / "runs" / run_id / "tune" / "trials" / "0001" / "metrics.jsonl"
        while not (metrics.is_file() and '"step"' in metrics.read_text(encoding="utf-8")):
            assert stopped.poll() is None and time.monotonic() < deadline, stopped.stderr and stopped.stderr.read()
            time.sleep(0.01)
        stopped.kill()
    assert stopped.returncode != 0
    child = json.loads((metrics.parent / "request.json").read_text(encoding="utf-8"))
    assert not trains(child["out_dir"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run_id"] == run_id
    assert trials_of(tmp_path) == trials_of(finished.folder)


@pytest.mark.slow
def test_sigterm_interrupts_a_study_as_ctrl_c_does_and_the_same_command_goes_on(tmp_path):
    run_id = assembled_run(tmp_path, settings_with(learning_rate_factors="[]", ranks="[]", repeats="0"))
    command = [*COMMAND, "--run", run_id, "--trials", "2", "--settings", str(tmp_path / "settings.toml"), "--json"]
    begun = tmp_path / "runs" / run_id / "tune" / "trials" / "0000" / "trial.log"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as stopped:
        deadline = time.monotonic() + 200
        while not begun.is_file():
            assert stopped.poll() is None and time.monotonic() < deadline, stopped.stderr and stopped.stderr.read()
            time.sleep(0.01)
        stopped.send_signal(signal.SIGTERM)
        _, said = stopped.communicate(timeout=100)
    assert stopped.returncode == 130, said
    assert not trains(str(begun.parent / "train"))
    with Record(tmp_path / "record.db") as record:
        assert runs.run(record, run_id).state is runs.RunState.INTERRUPTED
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [each["trial"] for each in trials_of(tmp_path)] == [0, 1]


def test_trial_is_watched_before_the_libraries_of_training_are_loaded():
    code = "import sys; import distill.training.tuning.trial; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_settings_are_trained_once_and_a_study_that_has_tried_all_of_them_ends_and_says_so(tmp_path):
    run_id = assembled_run(tmp_path, settings_with(learning_rate_factors="[]", ranks="[]", epochs="0.5", repeats="0"))
    path = tmp_path / "settings.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("epochs = [1.0, 2.0]", "epochs = [1.0]"), encoding="utf-8")
    begun: list[str] = []
    with opened(tmp_path, run_id) as run:
        tuned = tune(run, 9, lambda name, share, _note: begun.append(name) if share == 0.0 else None)
    assert sorted(each.changes.get("epochs", 0.5) for each in tuned.trials) == [0.5, 1.0]
    assert len(begun) == 2
    assert tuned.notes == ("every combination that [tune] allows has been tried",)
    assert tuned.notes[0] in tuned.sentences()


def trains(out_dir: str) -> bool:
    """Tell whether a process still works on a trial, after a moment to end."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        if not any(str(Path(out_dir).parent) in command for command in commands):
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_worse_trials_are_given_up_and_the_tokens_saved_are_told(tmp_path):
    # All but the present rate are hopeless, so that every other trial is behind at the first look.
    settings = settings_with(
        learning_rate_factors="[1e-4, 1e-3]", learning_rate="1e-2", validate_every_tokens="200", repeats="0"
    )
    run_id = assembled_run(tmp_path, settings)
    with opened(tmp_path, run_id) as run:
        tuned = tune(run, 2, ignore)
    pruned = [each for each in tuned.trials if each.state == "pruned"]
    assert pruned
    assert all(each.tokens < each.tokens_planned for each in pruned)
    trained = sum(each.tokens for each in tuned.trials)
    to_the_end = sum(each.tokens_planned if each.state == "pruned" else each.tokens for each in tuned.trials)
    assert tuned.as_json()["tokens_saved_share"] == pytest.approx(1 - trained / to_the_end, abs=1e-4)


def test_second_study_of_a_run_is_refused_while_the_first_goes_on(tmp_path):
    run_id = assembled_run(tmp_path)
    with opened(tmp_path, run_id):
        command = [*COMMAND, "--run", run_id, "--settings", str(tmp_path / "settings.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "one runs at a time" in done.stderr


def test_study_cannot_begin_without_assembled_data_or_held_out_conversations(tmp_path):
    run_id = assembled_run(tmp_path)
    with opened(tmp_path, run_id) as run:
        (run.folder / "assemble" / "validation.jsonl").write_text("", encoding="utf-8")
        with pytest.raises(OperatorError, match=r"no held-out conversations.*validation_share"):
            tune(run, 1, ignore)
        (run.folder / "assemble" / "manifest.json").unlink()
        with pytest.raises(OperatorError, match="no finished stage 'assemble'"):
            tune(run, 1, ignore)


def test_run_may_be_tuned_with_another_tune_table_than_it_was_begun_with(tmp_path):
    run_id = assembled_run(tmp_path)
    (tmp_path / "settings.toml").write_text(settings_with(repeats="0"), encoding="utf-8")
    with opened(tmp_path, run_id) as run:
        assert run.settings.tune.repeats == 0


TRAIN = TrainTable(rank=16, alpha=32, learning_rate=1e-3)


def test_present_settings_lie_inside_the_space_and_change_nothing():
    train = TRAIN.model_copy(update={"rank": 12, "epochs": 1.5, "soft_weight": 0.95, "replay_share": 0.4})
    space = space_of(TuneTable(learning_rate_factors=(2.0, 3.0)), train, has_beliefs=True, has_replay=True, max_lora_rank=16)
    for name, value in space.present.items():
        distribution = space.distributions[name]
        assert distribution._contains(distribution.to_internal_repr(value)), name
    assert space.changes(space.present, 1e-3) == {}


def test_soft_labels_replay_and_ranks_are_tried_only_where_they_can_be():
    def names(**changes) -> set[str]:
        held = {"has_beliefs": True, "has_replay": True, "max_lora_rank": 16, **changes}
        return set(space_of(TuneTable(), held.pop("train", TRAIN), **held).distributions)

    assert names() == {"learning_rate_factor", "rank", "epochs", "soft_weight", "replay_share"}
    assert "soft_weight" not in names(has_beliefs=False)
    assert "replay_share" not in names(has_replay=False)
    assert "rank" not in names(train=TRAIN.model_copy(update={"kind": "full"}))
    ranks = space_of(TuneTable(), TRAIN, has_beliefs=False, has_replay=False, max_lora_rank=32).distributions["rank"].choices
    assert ranks == (8, 16, 32)


def test_rank_stays_where_a_release_learns_on_and_it_is_said():
    def space(tune_table: TuneTable):
        return space_of(tune_table, TRAIN, has_beliefs=False, has_replay=False, max_lora_rank=64, learns_on="release_7")

    assert "rank" not in space(TuneTable()).distributions
    assert (
        space(TuneTable()).left_out == "other ranks were not tried: the release 'release_7' learns on and keeps its rank 16"
    )
    assert space(TuneTable(ranks=())).left_out == ""


@pytest.mark.parametrize(
    "refused",
    [
        {"learning_rate_factors": (1.0, float("inf"))},
        {"learning_rate_factors": (float("nan"), 1.0)},
        {"epochs": (float("inf"),)},
        {"epochs": (1.0, float("nan"))},
        {"epochs": (101.0,)},
    ],
)
def test_what_no_training_can_have_is_refused_when_the_settings_are_read(refused):
    with pytest.raises(ValueError, match=f"{next(iter(refused))} (is|has) .*expected"):
        TuneTable(**refused)


def test_alpha_grows_with_the_rank_and_the_learning_rate_is_a_multiple_of_the_present_one():
    space = space_of(TuneTable(), TRAIN, has_beliefs=False, has_replay=False, max_lora_rank=64)
    changes = space.changes({"rank": 64, "learning_rate_factor": 0.4567, "epochs": 2.0}, 1e-3)
    assert changes == {"rank": 64, "alpha": 128, "learning_rate": 0.000457}


def test_change_over_seeds_has_students_interval():
    # Mean 2, standard deviation 1, three values: 2 ± 4.3027 / √3.
    found = mean_over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.seeds) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)
    assert mean_over_seeds([1.0]).low is None


def test_only_the_changed_lines_of_a_settings_file_differ(tmp_path):
    (tmp_path / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    text = changed_settings(settings_in(tmp_path), {"rank": 8, "soft_weight": 0.25}, tmp_path / "a" / "b")
    differing = {line for line in text.splitlines() if line not in SETTINGS.splitlines()}
    assert differing == {
        'path = "../../record.db"  # beside this file',
        'base = "../../student"',
        'folder = "../../runs"',
        "rank = 8  # as small as it goes",
        "soft_weight = 0.25",
    }


def test_settings_file_that_cannot_be_edited_line_by_line_is_refused_and_the_keys_are_told(tmp_path):
    table = re.search(r"(?s)\[train\]\n.*?(?=\[tune\])", SETTINGS)
    assert table
    inline = "train = { rank = 4, epochs = 1.0 }\n" + SETTINGS.replace(table[0], "")
    (tmp_path / "settings.toml").write_text(inline, encoding="utf-8")
    with pytest.raises(
        OperatorError, match=r"cannot be written into a copy of it line by line.*in the way of \[train\] rank\)"
    ):
        changed_settings(settings_in(tmp_path), {"rank": 8}, tmp_path / "a")


def test_settings_file_that_cannot_hold_the_best_settings_is_refused_before_anything_is_trained(tmp_path):
    table = re.search(r"(?s)\[train\]\n(.*?)(?=\[tune\])", SETTINGS)
    assert table
    dotted = "".join(f"train.{line}\n" for line in table[1].splitlines())
    run_id = assembled_run(tmp_path, SETTINGS.replace(table[0], "").replace("[record]", f"{dotted}[record]"))
    begun: list[str] = []
    with opened(tmp_path, run_id) as run, pytest.raises(OperatorError, match="line by line"):
        tune(run, 2, lambda name, _share, _note: begun.append(name))
    assert not begun


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# as small as it goes", "# as small \x85 as \u2028 it goes"),
        ('system = "You help."', 'system = "You\u2028help."'),
        ("rank = 4", '"rank" = 4'),
        ("rank = 4", "'rank' = 4"),
        ("[train]", '["train"]'),
        ("[train]", "[ 'train' ]  # how"),
    ],
)
def test_settings_file_is_edited_however_toml_may_write_it(tmp_path, old, new):
    assert old in SETTINGS
    written = SETTINGS.replace(old, new)
    (tmp_path / "settings.toml").write_text(written, encoding="utf-8")
    text = changed_settings(settings_in(tmp_path), {"rank": 8, "soft_weight": 0.25}, tmp_path)
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    assert (settings_in(tmp_path).train.rank, settings_in(tmp_path).train.soft_weight) == (8, 0.25)
    assert "= 8  # as small" in text


def test_ends_of_lines_of_a_settings_file_stay(tmp_path):
    (tmp_path / "settings.toml").write_bytes(SETTINGS.replace("\n", "\r\n").encode())
    text = changed_settings(settings_in(tmp_path), {"rank": 8, "soft_weight": 0.25}, tmp_path)
    assert text.count("\n") == text.count("\r\n") == SETTINGS.count("\n") + 1
