"""How many requests an hour each student bears: the same prompts, the real server, ever more requests at once.

In: a finished run and the students that a server has loaded. Out: `evaluate/load.json`, a row for each student and level. It takes
minutes, so it is no part of a cycle. A level is a closed loop: so many customers, each of whom asks again as soon as it is answered.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from conversations import releases
from conversations.errors import OperatorError, OutsideError
from conversations.messages import Json, utc_now
from conversations.prompt import Renderer
from distill.evaluation.answering.asking import drawn_by_hash, questions_of, student_of
from distill.evaluation.answering.contestants import StudentModel
from distill.evaluation.answering.generation import Generated, Question, Student, side_by_side
from distill.evaluation.evaluate import ROWS
from distill.evaluation.figures.speed import Spread, spread
from distill.evaluation.page.words import MODEL_TITLES
from distill.evaluation.scoring.row import MODELS
from distill.rows import DatasetRow, EvaluationRow, read_rows
from distill.run import Run, Stage, write_whole

LOAD = "load.json"

Announce = Callable[[str, float, str], None]


@dataclass(frozen=True)
class LoadRow:
    """What one student bore at one level. Rates count what was answered, over the seconds until the last answer had come.

    They are None, as the times are, where nothing was answered.
    """

    model: StudentModel
    release_id: str
    concurrency: int
    requests: int
    failed: int
    seconds: float
    requests_per_hour: float | None
    tokens_per_second: float | None
    first_token_ms: Spread
    latency_ms: Spread


@dataclass(frozen=True)
class LoadTest:
    """Every row, and the measured releases that no server had loaded."""

    rows: tuple[LoadRow, ...]
    not_loaded: tuple[str, ...]


def measure_load(run: Run, levels: Sequence[int], seconds: float, announce: Announce) -> LoadTest:
    """Put the students of a finished run under load, and write `load.json`. The report is the caller's to write anew.

    Raises OperatorError for a run that was not evaluated, or where no level is to be measured, and OutsideError where no server has
    any of its students; then an earlier load test stays.
    """
    run.manifest(Stage.EVALUATE)
    if not levels or min(levels) < 1:
        raise OperatorError(
            f"[evaluate] load_levels = {list(levels)!r}: nothing to measure; expected how many requests at once, such as [1, 4, 16]; "
            "name at least one, each 1 or more"
        )
    questions = _questions(run)
    measured = _measured(run)
    served = {model: ready[0] for model, name in measured.items() if (ready := releases.servers_with(run.record, name))}
    if not served:
        raise OutsideError(
            f"no student server has loaded {' or '.join(measured.values())}; start `support-bot student`, or measure a run whose "
            "release is in service"
        )
    renderer = Renderer.load(run.settings.student.base)
    found: list[LoadRow] = []
    for at, (model, server) in enumerate(served.items()):
        for step, level in enumerate(levels):
            done = (at + step / len(levels)) / len(served)
            announce("load", done, f"{MODEL_TITLES[model]}, {level} at once")
            student = student_of(run.settings, server.base_url, measured[model], renderer, max_retries=0)
            answers, took = asyncio.run(under_load(student, questions, level, seconds))
            found.append(row_of(model, measured[model], level, answers, took))
    announce("load", 1.0, "")
    test = LoadTest(tuple(found), tuple(name for model, name in measured.items() if model not in served))
    held: dict[str, Json] = {
        "measured_at_utc": utc_now(),
        "seconds_at_each_level": seconds,
        "not_loaded": list(test.not_loaded),
        "rows": [asdict(row) for row in test.rows],
    }
    write_whole(run.stage_folder(Stage.EVALUATE) / LOAD, json.dumps(held, indent=2) + "\n")
    return test


def _questions(run: Run) -> list[Question]:
    """Return the edition's decisions, the same ones in the same order for every student and level."""
    rows = list(read_rows(run.folder / Stage.ASSEMBLE / "test.jsonl", DatasetRow))
    if not rows:
        raise OperatorError(f"the run {run.run_id!r} has no test decisions left to ask; measure a newer run")
    by_name = {question.decision_id: question for question in questions_of(rows)}
    return [by_name[name] for name in drawn_by_hash(by_name, len(by_name))]


def _measured(run: Run) -> dict[StudentModel, str]:
    """Return the students that the run has measured, with their releases."""
    names = {row.model: row.release_id for row in read_rows(run.folder / Stage.EVALUATE / ROWS, EvaluationRow)}
    return {model: names[model] for model in MODELS if model != "teacher" and model in names}


async def under_load(
    student: Student, questions: Sequence[Question], concurrency: int, seconds: float
) -> tuple[list[Generated], float]:
    """Keep so many requests under way for so long; return the answers, and the seconds until the last of them had come."""
    answers: list[Generated] = []
    waiting: Iterator[Question] = itertools.cycle(questions)
    try:
        # The first request of a connection pays for it, and the first of an adapter may pay for that.
        await student.answer(questions[0])
        started = time.perf_counter()

        async def customer() -> None:
            while time.perf_counter() - started < seconds:
                answer = await student.answer(next(waiting))
                answers.append(answer)
                if answer.failure:
                    # Who refuses at once would otherwise be asked as fast as it refuses.
                    await asyncio.sleep(min(1.0, seconds / 10))

        await side_by_side([customer() for _ in range(concurrency)])
        return answers, time.perf_counter() - started
    finally:
        await student.close()


def row_of(model: StudentModel, release_id: str, concurrency: int, answers: Sequence[Generated], seconds: float) -> LoadRow:
    """Return the figures of one level."""
    good = [each for each in answers if not each.failure]
    tokens = sum(each.completion_tokens or 0 for each in good)
    return LoadRow(
        model=model,
        release_id=release_id,
        concurrency=concurrency,
        requests=len(answers),
        failed=len(answers) - len(good),
        seconds=round(seconds, 3),
        requests_per_hour=round(len(good) / seconds * 3600, 3) if good else None,
        tokens_per_second=round(tokens / seconds, 3) if good else None,
        first_token_ms=spread([each.first_token_ms for each in good]),
        latency_ms=spread([each.latency_ms for each in good]),
    )
