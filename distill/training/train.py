"""The stage `train`: an assembled dataset becomes the student's new weights.

In: the student's checkpoint folder, `train.jsonl`, `validation.jsonl`. Out: `adapter/` (or `checkpoint/`) with its model
card, `training.json`, and one line a step in the run's `metrics.jsonl`. A killed training goes on where it was and, on
a CPU, ends with the same bits. The record says where to start, and is told how it went. Never reads the test set or a
customer's name.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from pydantic import TypeAdapter, ValidationError

from conversations.errors import OperatorError
from conversations.messages import Json
from distill.rows import SOFT_LABELS_FILE, first_problem
from distill.run import Counts, Outcome, Run, Stage, write_whole
from distill.settings import token_cache
from distill.training.batches.forest import Forest
from distill.training.decisions.replay import draw_replay
from distill.training.fingerprint import fingerprint_of
from distill.training.fitting.checkpoint import Fingerprint, load_checkpoint, refuse_other_training
from distill.training.fitting.disk import telling_of_a_full_disk
from distill.training.fitting.loop import Fitting, TrainProgress, progress_of
from distill.training.fitting.metrics_log import MetricsLog
from distill.training.fitting.planning import plan_steps, validation_sample
from distill.training.processes.group import Group
from distill.training.processes.launch import process_count, threads_of_each, train_together
from distill.training.replaying import replay_of, settle_replay, start_of
from distill.training.request import TrainRequest
from distill.training.result import TrainResult, result_of, weights_gone, write_weights
from distill.training.starting import learn_on, started_from
from distill.training.student.learning import LearningStudent, device_at_hand, open_student
from distill.training.telling import telling
from distill.training.training_set import read_training_set

RESULT_FILE = "training.json"
CHECKPOINT_FILE = ".checkpoint.pt"

log = logging.getLogger(__name__)


def train_stage(run: Run) -> Outcome:
    """Train the student of a run on what the run assembled."""

    def show(progress: TrainProgress) -> None:
        run.report_progress(
            Stage.TRAIN,
            min(0.99, progress.tokens_done / progress.tokens_total),
            f"loss {progress.loss:.3f}, {progress.tokens_per_second:.0f} tokens/s",
        )

    request = request_of(run)
    run.event(Stage.TRAIN, "starts", {"started_from": started_from(request.start), "wanted": request.settings.start_from})
    result = train(request, show, telling(run), apart=True)
    if request.replay_path is not None:
        settle_replay(run, request.replay_path)
    left_out = (
        Counter(result.train_rows_left_out)
        + Counter(result.validation_rows_left_out)
        + Counter(result.replayed_rows_left_out)
    )
    return Outcome(
        Counts(
            taken_in=result.train_rows + result.validation_rows + result.replayed_rows,
            accepted=result.train_rows_kept + result.validation_rows_kept + result.replayed_rows_kept,
            rejected=left_out.total(),
            unscored=0,
            rejected_by_reason=dict(left_out),
        ),
        asdict(result),
    )


def request_of(run: Run) -> TrainRequest:
    """Return what the settings of a run, and what it assembled, ask a training to do."""
    return TrainRequest(
        base_dir=run.settings.student.base,
        train_path=run.folder / Stage.ASSEMBLE / "train.jsonl",
        validation_path=run.folder / Stage.ASSEMBLE / "validation.jsonl",
        out_dir=run.stage_folder(Stage.TRAIN),
        metrics_path=run.folder / "metrics.jsonl",
        settings=run.settings.train,
        max_prompt_tokens=run.settings.prompt.max_prompt_tokens,
        cache_dir=token_cache(run.settings),
        soft_labels_path=run.folder / Stage.ASSEMBLE / SOFT_LABELS_FILE,
        replay_path=replay_of(run),
        start=start_of(run),
        max_model_len=run.settings.student.max_model_len,
    )


def train(
    request: TrainRequest,
    on_progress: Callable[[TrainProgress], None],
    on_event: Callable[[str, Mapping[str, Json]], None] = lambda _event, _figures: None,
    *,
    apart: bool = False,
) -> TrainResult:
    """Fine-tune the student, write its weights, and say how it went.

    `on_progress` is called after every step, `on_event` with every line of metrics. A finished training is returned as it is
    while its weights are there; a begun one goes on. Several processes train where the settings, or several GPUs, say so; `apart`:
    a single one is another process too, which gives way to the student's server and takes its memory with it when it ends.
    Raises OperatorError when there is nothing to learn, the base cannot be loaded, the loss is no number, or the
    training in `out_dir` was begun with another base, other rows or other settings; OutsideError when memory or disk run out or a
    process dies; KeyboardInterrupt after SIGTERM, with a checkpoint written.
    """
    request.out_dir.mkdir(parents=True, exist_ok=True)
    with telling_of_a_full_disk(request.out_dir):
        draw_replay(request)
    processes = process_count(request.settings)
    alone = Group(device_at_hand())
    if processes == 1 and not apart:
        return train_in(alone, request, on_progress, on_event)
    fingerprint = fingerprint_of(request, replace(alone, size=processes))
    finished = _finished(request, fingerprint)
    if finished is not None:
        return finished

    def heard(event: str, figures: Mapping[str, Json]) -> None:
        if event == "progress":
            on_progress(progress_of(figures))
        else:
            on_event(event, figures)

    train_together(request, processes, heard)
    finished = _finished(request, fingerprint)
    assert finished is not None, "every process has ended well, and none has written a result"
    return finished


def train_in(
    group: Group,
    request: TrainRequest,
    on_progress: Callable[[TrainProgress], None],
    on_event: Callable[[str, Mapping[str, Json]], None],
) -> TrainResult:
    """Train as one process of a group, of which the first writes; see `train`."""
    fingerprint = fingerprint_of(request, group)
    finished = _finished(request, fingerprint)
    if finished is not None:
        return finished
    saved = load_checkpoint(request.out_dir / CHECKPOINT_FILE)
    if saved is not None:
        refuse_other_training(request.out_dir / CHECKPOINT_FILE, saved.fingerprint, fingerprint)
    # The order of sums follows the number of threads, so that a training keeps the one that it began with.
    threads = saved.threads if saved else threads_of_each(request.settings, group.size)
    del saved
    request.out_dir.mkdir(parents=True, exist_ok=True)
    settings = request.settings
    rows = read_training_set(request, group)
    with telling_of_a_full_disk(request.out_dir), _threads(threads), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        student = open_student(request.base_dir, settings, device=group.device, max_model_len=request.max_model_len)
        if request.start is not None:
            learn_on(student, request.start)
        layout = student.layout(settings.token_budget_per_batch)
        fitting = Fitting(
            student,
            rows.forest,
            plan_steps(rows.forest, settings, layout),
            validation_sample(Forest(rows.held_out), settings, layout),
            settings,
            MetricsLog(request.metrics_path, on_event, writes=group.writes),
            group,
        )
        fitting.run(request.out_dir / CHECKPOINT_FILE, fingerprint, threads, on_progress)
        result = result_of(fitting, rows, request.start, threads)
        student = _whole_student(fitting, request)
    if not group.writes:
        return result
    with telling_of_a_full_disk(request.out_dir):
        result = write_weights(request, student, result, fingerprint, [*rows.held_out, *rows.own])
        held = {"fingerprint": dict(fingerprint), "result": asdict(result)}
        write_whole(request.out_dir / RESULT_FILE, json.dumps(held, indent=2) + "\n")
    (request.out_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
    return result


def _whole_student(fitting: Fitting, request: TrainRequest) -> LearningStudent:
    """Return the student with all of its weights in this process, for writing them."""
    if not fitting.is_divided:
        return fitting.student
    learned = fitting.student.learned()
    without_teacher = request.settings.model_copy(update={"local_teacher": None})
    student = open_student(
        request.base_dir, without_teacher, device=torch.device("cpu"), max_model_len=request.max_model_len
    )
    student.put_back(learned)
    return student


@dataclass(frozen=True)
class _Kept:
    """What `training.json` holds."""

    fingerprint: dict[str, str]
    result: TrainResult


def _finished(request: TrainRequest, fingerprint: Fingerprint) -> TrainResult | None:
    """Return the result of a training that is over and whose weights are still there.

    Raises OperatorError where it is another training's, or cannot be read.
    """
    path = request.out_dir / RESULT_FILE
    if not path.is_file():
        return None
    try:
        kept = TypeAdapter(_Kept).validate_json(path.read_bytes())
    except ValidationError as error:
        raise OperatorError(
            f"{path}: damaged, or written by another version: {first_problem(error)}; expected a finished training's "
            "fingerprint and result; remove it to begin again from the first step"
        ) from None
    refuse_other_training(path, kept.fingerprint, fingerprint)
    gone = weights_gone(request, kept.result)
    if gone:
        log.warning("%s: this training is over, but %s is gone or cut: it is trained again", path, gone)
        return None
    return kept.result


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
