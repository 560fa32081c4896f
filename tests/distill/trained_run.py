"""A run that is trained and can be measured: tiny weights, and a scripted server that has every student loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scripted_teacher import Act, ScriptedTeacher
from small_run import SmallRun, small_run
from tiny_student import tiny_student

from conversations import releases
from conversations.releases import Load, ServerState
from distill.evaluation.answering.contestants import register_candidate
from distill.rows import DatasetRow, EvaluationRow, read_rows
from distill.run import Announce, Counts, Manifest, Outcome, Run, Stage, open_run
from tests.support_bot.scripted_student import ScriptedStudent

SERVER = "scripted"
TAUGHT = "Coral light: please wait 12 minutes."


@dataclass
class MeasuredRun:
    """A run up to its training, the server of its students and the teacher that it had."""

    small: SmallRun
    run: Run
    student: ScriptedStudent
    base: str
    candidate: str = ""
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def test_rows(self) -> list[DatasetRow]:
        return list(read_rows(self.run.folder / "assemble" / "test.jsonl", DatasetRow))

    @property
    def rows(self) -> list[EvaluationRow]:
        return list(read_rows(self.run.folder / "evaluate" / "rows.jsonl", EvaluationRow))

    def load(self, *release_ids: str) -> None:
        """Have the server say that it is ready and has these releases."""
        releases.announce_server(
            self.small.record, server_id=SERVER, base_url=self.student.base_url, base="tiny", state=ServerState.READY, **self.memory
        )  # fmt: skip
        for name in release_ids:
            releases.note_load(self.small.record, Load(SERVER, name, True, ""))

    def evaluate(self, announce: Announce = lambda stage, share, note: None) -> Manifest:
        """Measure, as `distill evaluate` does."""
        _, (manifest,) = self._perform(announce)
        return manifest

    def _perform(self, announce: Announce) -> tuple[Run, list[Manifest]]:
        from distill.cycle import perform_stage

        with open_run(self.small.record, self.small.settings, self.run.run_id, announce) as run:
            return run, [perform_stage(run, Stage.EVALUATE)]


def trained(run: Run, weights: str = "adapter", kind: str = "lora", merged: bool = False) -> None:
    """Finish the stage `train` with weights of a few bytes, as it would have left them."""

    def work(run: Run) -> Outcome:
        folder = run.stage_folder(Stage.TRAIN)
        for name in (weights, *(("merged",) if merged else ())):
            (folder / name).mkdir(parents=True)
            if name == "adapter":
                (folder / name / "adapter_model.safetensors").write_bytes(b"adapter" * 10)
            else:
                tiny_student(folder / name)
        details = {"kind": kind, "weights": weights, "started_from": "base", "merged": {"prompts": 1.0} if merged else None}
        return Outcome(Counts(taken_in=0, accepted=0, rejected=0, unscored=0, rejected_by_reason={}), details)

    run.perform(Stage.TRAIN, work)


@contextmanager
def measured_run(
    folder: Path, *, more: str = "", evaluate: str = "", taught: str = TAUGHT, max_calls: int = 1000
) -> Iterator[MeasuredRun]:
    """A run whose candidate and base are loaded; `evaluate` are further lines of that table, `taught` is what the teacher says."""
    student = ScriptedStudent()
    try:
        with (
            ScriptedTeacher(lambda question, before: Act(taught)) as teacher,
            small_run(folder, teacher.base_url, more=more) as small,
        ):
            base = tiny_student(folder / "tiny")
            text = small.settings_file.read_text(encoding="utf-8").replace("no-student", "tiny")
            table = f"[evaluate]\ntimed_decisions = 1\nconcurrency = 1\nload_timeout_seconds = 1\n{evaluate}"
            text = text.replace("[evaluate]", table).replace("max_calls = 1000", f"max_calls = {max_calls}")
            small.settings_file.write_text(text, encoding="utf-8")
            run, _ = small.perform(Stage.CHOOSE, Stage.TEACH, Stage.VERIFY, Stage.ASSEMBLE)
            with open_run(small.record, small.settings, run.run_id) as opened:
                trained(opened)
            name = releases.register_base(
                small.record, base="tiny", weights_path=str(base), weights_digest="sha256:0123456789ab"
            )
            made = MeasuredRun(small, run, student, name)
            made.candidate = register_candidate(run)
            made.load(name, made.candidate)
            yield made
    finally:
        student.close()
