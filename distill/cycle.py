"""A whole cycle: every stage in order, in a new run or an interrupted one.

In: the settings and the record. Out: a run with its report. One run goes on at a time, across processes and machines.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from conversations import runs
from conversations.errors import OperatorError, Refused
from conversations.messages import Json
from conversations.store import Record
from distill.rows import Task
from distill.run import STAGES, Announce, Manifest, Outcome, Run, Stage, can_go_on, new_run, open_run, run_digest
from distill.settings import DistillSettings

_REPLAY = "assemble/replay.jsonl"
_INPUTS: Mapping[Stage, tuple[str, ...]] = {
    Stage.CHOOSE: (),
    Stage.TEACH: ("choose/decisions.jsonl",),
    Stage.VERIFY: ("choose/decisions.jsonl", "teach/answers.jsonl"),
    Stage.ASSEMBLE: ("choose/decisions.jsonl", "teach/answers.jsonl", "verify/verdicts.jsonl"),
    Stage.TRAIN: ("assemble/train.jsonl", "assemble/validation.jsonl", _REPLAY),
    Stage.EVALUATE: ("assemble/test.jsonl",),
    Stage.PROMOTE: ("evaluate/rows.jsonl",),
}


@dataclass(frozen=True)
class CycleResult:
    """What a finished cycle tells."""

    run_id: str
    report: dict[str, Json]
    outcome: str
    reasons: tuple[str, ...]


def perform_stage(run: Run, stage: Stage) -> Manifest:
    """Do one stage of a run, unless it is done; the stages before it must be.

    Raises OperatorError when an earlier stage is missing, or [train] or the quality metric is one that cannot be, before a teacher is
    paid or a student trained.
    """
    if stage in (Stage.TEACH, Stage.TRAIN) and not run.is_complete(stage):
        check_train(run.settings)
        _check_quality_metric(run.settings)
    for earlier in STAGES[: STAGES.index(stage)]:
        run.manifest(earlier)
    inputs = [run.folder / name for name in _INPUTS[stage]]
    # A run that an earlier version assembled has no replay.
    return run.perform(
        stage, _work(stage), inputs=[path for path in inputs if path != run.folder / _REPLAY or path.is_file()]
    )


def run_cycle(
    record: Record,
    settings: DistillSettings,
    announce: Announce,
    *,
    run_id: str | None = None,
    begun: runs.Begun | None = None,
) -> CycleResult:
    """Do every stage that is not done, in the named run, the newest unfinished one with these settings, or a new one.

    Whoever says that it has `begun` the cycle names the run that it takes up; without a name that is a new one.
    """
    check_before(settings)
    check_start(record, settings)
    with _run_of(record, settings, announce, run_id, begun) as run:
        if settings.handbook:
            from distill.dataset.handbook.changes import note_seen

            note_seen(record, run.run_id, settings.handbook.path)
        for stage in STAGES:
            perform_stage(run, stage)
        from distill.evaluation.report import read_report

        report = read_report(run.folder)
        gate = report["gate"]
        assert isinstance(gate, dict)
        reasons = gate["reasons"]
        outcome = str(gate["outcome"])
        runs.finish_run(record, run.run_id, state=runs.RunState.COMPLETE, outcome=outcome, report=report)
        return CycleResult(run.run_id, report, outcome, tuple(map(str, reasons if isinstance(reasons, list) else [])))


def check_before(settings: DistillSettings) -> None:
    """Look for what would stop a cycle after its teacher was paid.

    Raises OperatorError as `check_settings` does, for a teacher or judge that must not be used or whose key is missing, more training
    processes than GPUs, and a second pass of redaction that is not installed.
    """
    from distill.dataset.judge import judge_teacher
    from distill.dataset.second_pass import check_second_pass
    from distill.dataset.teaching.budget import check_teachers

    check_settings(settings)
    if settings.train.processes:
        from distill.training.processes.launch import process_count

        process_count(settings.train)
    check_second_pass(settings.redaction)
    check_teachers(settings)
    if settings.judge:
        judge_teacher(settings)


def check_settings(settings: DistillSettings) -> None:
    """Look for what the settings ask for and nobody can do; a dry run asks this too, which needs no key, licence or second pass.

    Raises OperatorError for a student that is not there or has another one's tokenizer, an adapter that it could not serve, and a
    figure that nobody measures.
    """
    from distill.training.decisions.vocabulary import check_vocabulary

    place, base = settings.settings_file, settings.student.base
    if not (base / "config.json").is_file():
        raise OperatorError(
            f"{place} [student] base: there is no model in {base}; expected a folder with config.json and its weights; "
            "`distill unpack-student --out FOLDER` unpacks the embedded one, or set another path"
        )
    if (base / "tokenizer.json").is_file():
        check_vocabulary(base)
    check_train(settings)
    _check_quality_metric(settings)


def _check_quality_metric(settings: DistillSettings) -> None:
    """Raise OperatorError where the share of the teacher is to be told in what its answers do not have."""
    from distill.evaluation.scoring.metric import Metric, quality_metrics_of

    place = settings.settings_file
    task = Task(settings.datasets.task) if settings.datasets else Task.CONVERSATION
    if settings.evaluate.quality_metric not in quality_metrics_of(task):
        raise OperatorError(
            f"{place} [evaluate] quality_metric = {settings.evaluate.quality_metric!r}: no quality that answers of the task "
            f"{task.value!r} have, the teacher's too; expected one of {', '.join(quality_metrics_of(task))}; name another"
        )
    if settings.evaluate.quality_metric == Metric.JUDGE_GRADE and settings.judge is None:
        raise OperatorError(
            f'{place} [evaluate] quality_metric = "judge_grade": nobody judges; expected a table [judge]; add it, or name another '
            "metric"
        )


def check_train(settings: DistillSettings) -> None:
    """Look for what in [train] alone cannot be: a cycle asks before all else, a single stage before it pays or trains.

    Raises OperatorError for an adapter that the student's server would not take, and for merging where there is no adapter.
    """
    place, table = settings.settings_file, settings.train
    if table.kind == "lora" and table.rank > settings.student.max_lora_rank:
        raise OperatorError(
            f"{place} [train] rank = {table.rank}: the student's server takes adapters up to [student] max_lora_rank "
            f"= {settings.student.max_lora_rank}; lower the one or raise the other"
        )
    if table.kind == "full" and table.merged:
        raise OperatorError(
            f'{place} [train] merged = true with kind = "full": only an adapter can be merged, and a full training writes a '
            'checkpoint that is whole already; remove merged, or set kind = "lora"'
        )


def check_start(record: Record, settings: DistillSettings) -> None:
    """Make sure, before a teacher is paid, that the release in service can learn on where the settings say so.

    Raises OperatorError, naming what is in its way.
    """
    if settings.train.start_from == "release":
        from distill.dataset.choosing.taught import starting_release
        from distill.training.starting import starting_point

        starting_point(record, settings, starting_release(record, settings))


def refusal(result: CycleResult) -> Refused | None:
    """Return what a command must say of a cycle that did not end in a promotion."""
    if result.outcome == "promote":
        return None
    return Refused(
        f"the gate says {result.outcome}: {'; '.join(result.reasons)}; the student in service stays; "
        f"`distill report {result.run_id}` shows the numbers"
    )


def unfinished_runs(record: Record, settings: DistillSettings) -> Iterator[runs.Run]:
    """Yield the interrupted and failed runs with these settings that can go on, the newest first; none older than one that ended."""
    for run in runs.runs(record):
        if can_go_on(run, settings):
            yield run
        elif run.settings_digest == run_digest(settings) and run.state in (runs.RunState.COMPLETE, runs.RunState.RUNNING):
            return


def newest_complete_run(record: Record) -> runs.Run:
    """Return the newest run that came to its end.

    Raises OperatorError when there is none.
    """
    for run in runs.runs(record):
        if run.state is runs.RunState.COMPLETE and run.report is not None:
            return run
    raise OperatorError(f"no complete run in {record.path}; start one with `distill cycle`")


@contextmanager
def _run_of(
    record: Record, settings: DistillSettings, announce: Announce, run_id: str | None, begun: runs.Begun | None
) -> Iterator[Run]:
    if run_id is None and begun is None:
        run_id = next((run.run_id for run in unfinished_runs(record, settings)), None)
    opened = open_run(record, settings, run_id, announce, begun) if run_id else new_run(record, settings, announce, begun)
    with opened as run:
        yield run


def _work(stage: Stage) -> Callable[[Run], Outcome]:
    """Return a stage's function; its libraries are loaded only now."""
    match stage:
        case Stage.CHOOSE:
            from distill.dataset.choose import choose

            return choose
        case Stage.TEACH:
            from distill.dataset.teach import teach

            return teach
        case Stage.VERIFY:
            from distill.dataset.verify import verify

            return verify
        case Stage.ASSEMBLE:
            from distill.dataset.assemble import assemble

            return assemble
        case Stage.TRAIN:
            from distill.training.train import train_stage

            return train_stage
        case Stage.EVALUATE:
            from distill.evaluation.evaluate import evaluate

            return evaluate
        case Stage.PROMOTE:
            from distill.evaluation.promote import promote

            return promote
