"""The stage `evaluate`: base, candidate, release in service and teacher on the same frozen questions.

In: the test edition and the trained weights. Out: `rows.jsonl`, one answer a line with its scores, and what each model took.
Students answer over the serving path of customers. A few decisions are asked one at a time, for latency; the rest together.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil

from conversations import decisions, releases
from conversations.errors import OperatorError
from conversations.messages import Json, Role, utc_now
from conversations.prompt import Renderer
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.changes import without_retired
from distill.evaluation.answering.generation import Generated, Question, Student, answer_together, wait_until_loaded
from distill.evaluation.scoring.facts import Yardstick, score
from distill.rows import AnswerRow, DatasetRow, EvaluationRow, read_rows
from distill.run import Counts, Outcome, Run, Stage, file_digest, read_json, write_whole

StudentModel = Literal["base", "candidate", "released"]
ROWS = "rows.jsonl"
TAKEN = "taken.json"
_ANSWERED = ".answered.jsonl"


@dataclass(frozen=True)
class Contestant:
    """A student that is measured, and the server that serves it."""

    model: StudentModel
    release_id: str
    server: releases.StudentServer


@dataclass(frozen=True)
class Asked:
    """An answer as it came, with how it was asked."""

    model: StudentModel
    timed: bool
    generated: Generated


def evaluate(run: Run) -> Outcome:
    """Measure the candidate against the others on the test edition.

    Raises OutsideError when no student server loads the candidate in time.
    """
    rows = list(read_rows(run.folder / Stage.ASSEMBLE / "test.jsonl", DatasetRow))
    if not rows:
        raise OperatorError(
            f"the run {run.run_id!r} has no test decisions; record more conversations, or raise [choose] test_share"
        )
    candidate = register_candidate(run)
    contestants = _contestants(run, candidate)
    asked, phases = asyncio.run(_ask_all(run, rows, contestants))
    scored = _score_all(run, rows, asked, {each.model: each.release_id for each in contestants})
    run.write_rows(Stage.EVALUATE, ROWS, scored)
    _keep_answers(run, scored)
    taken = {each.model: _taken(run, each, phases) for each in contestants}
    write_whole(run.stage_folder(Stage.EVALUATE) / TAKEN, json.dumps(taken, indent=2) + "\n")
    failed = sum(bool(row.failure) for row in scored)
    return Outcome(
        Counts(
            taken_in=len(scored),
            accepted=len(scored) - failed,
            rejected=0,
            unscored=failed,
            rejected_by_reason={},
        ),
        {"candidate": candidate, "decisions": len(rows), "models": [each.model for each in contestants] + ["teacher"]},
    )


def register_candidate(run: Run) -> str:
    """Enter the run's weights as a release, once, ask for them to be loaded, and return the release's name."""
    release_id = run.run_id.replace("run_", "student-")
    adapter = run.folder / Stage.TRAIN / "adapter"
    if release_id not in {release.release_id for release in releases.releases(run.record)}:
        start = str(run.manifest(Stage.TRAIN).details.get("started_from", releases.STARTED_FROM_BASE))
        releases.register(
            run.record,
            releases.Release(
                release_id=release_id,
                run_id=run.run_id,
                base=run.settings.student.base.name,
                kind=releases.ReleaseKind.LORA,
                weights_path=str(adapter),
                weights_digest=file_digest(adapter / "adapter_model.safetensors"),
                metrics={},
                created_at_utc=utc_now(),
                state=releases.ReleaseState.CANDIDATE,
                started_from=None if start == releases.STARTED_FROM_BASE else start,
            ),
            actor="distill evaluate",
            reason=f"trained by {run.run_id}, started from {start}",
        )
    releases.want(run.record, release_id, wanted_by="distill evaluate")
    return release_id


def _contestants(run: Run, candidate: str) -> list[Contestant]:
    """Return base, candidate and, where it is another one, the release in service, each with its server."""
    wait = run.settings.evaluate.load_timeout_seconds
    candidate_server = wait_until_loaded(run.record, candidate, wait)
    base = next(
        (release.release_id for release in releases.wanted(run.record) if release.kind is releases.ReleaseKind.BASE), None
    )
    if base is None:
        raise OperatorError("the record knows no base student; start `support-bot student` once with these settings")
    found: list[Contestant] = [
        Contestant("base", base, wait_until_loaded(run.record, base, wait)),
        Contestant("candidate", candidate, candidate_server),
    ]
    current = releases.in_service(run.record)
    if current is not None and current not in (base, candidate):
        found.append(Contestant("released", current, wait_until_loaded(run.record, current, wait)))
    return found


async def _ask_all(
    run: Run, rows: Sequence[DatasetRow], contestants: Sequence[Contestant]
) -> tuple[list[Asked], dict[str, tuple[int, float]]]:
    """Ask every contestant everything that it has not answered yet.

    Returns the answers, and for each model how many it gave together and in how many seconds.
    """
    settings = run.settings
    renderer = Renderer.load(settings.student.base)
    journal = run.stage_folder(Stage.EVALUATE) / _ANSWERED
    asked = _resume(journal)
    have = {(each.model, each.generated.decision_id) for each in asked}
    questions = [Question(row.decision_id, tuple(m.message() for m in row.messages[:-1])) for row in rows]
    timed = {q.decision_id for q in sorted(questions, key=_by_hash)[: settings.evaluate.timed_decisions]}
    students = {
        each.model: Student(
            each.server.base_url, each.release_id, renderer, settings.prompt, settings.evaluate.max_answer_tokens
        )
        for each in contestants
    }
    total = len(questions) * len(contestants)
    phases: dict[str, tuple[int, float]] = {}

    def keep(model: StudentModel, is_timed: bool, generated: Generated) -> None:
        each = Asked(model, is_timed, generated)
        asked.append(each)
        if not generated.failure:
            _journal(journal, each)
        run.report_progress(Stage.EVALUATE, 0.99 * len(asked) / total, f"{model} {len(asked)}/{total}")

    try:
        # One at a time and in turn, so that a slow moment of the machine meets every model.
        for question in questions:
            for model, student in students.items():
                if question.decision_id in timed and (model, question.decision_id) not in have:
                    keep(model, True, await student.answer(question))
        for model, student in students.items():
            rest = [q for q in questions if q.decision_id not in timed and (model, q.decision_id) not in have]
            started = time.perf_counter()
            await answer_together(student, rest, settings.evaluate.concurrency, partial(keep, model, False))
            phases[model] = (len(rest), time.perf_counter() - started)
    finally:
        for student in students.values():
            await student.close()
    return asked, phases


def _score_all(
    run: Run, rows: Sequence[DatasetRow], asked: Sequence[Asked], release_ids: Mapping[str, str]
) -> list[EvaluationRow]:
    """Score every answer, the teacher's from the edition among them, in the order of decisions and models."""
    yardstick = yardstick_of(run)
    handbook = Handbook.load(run.settings.handbook.path) if run.settings.handbook else None
    # The edition stays as it is; what the handbook no longer says is expected of nobody.
    rows = [row.model_copy(update={"labels": without_retired(row.labels, handbook)}) for row in rows]
    by_decision = {row.decision_id: row for row in rows}
    teacher_times = _teacher_rows(run)
    found: list[EvaluationRow] = []
    for each in asked:
        row = by_decision[each.generated.decision_id]
        found.append(
            _row(
                row,
                yardstick,
                model=each.model,
                release_id=release_ids[each.model],
                text=each.generated.text,
                timed=each.timed,
                times=each.generated,
                failure=each.generated.failure,
            )
        )
    for row in rows:
        reply = teacher_times.get(row.decision_id)
        found.append(
            _row(
                row,
                yardstick,
                model="teacher",
                release_id=row.teacher,
                text=row.messages[-1].content,
                timed=True,
                times=reply,
                failure="" if row.messages[-1].content else "the teacher gave no answer",
            )
        )
    order = ("base", "candidate", "released", "teacher")
    return sorted(found, key=lambda row: (row.decision_id, order.index(row.model)))


def _row(
    row: DatasetRow,
    yardstick: Yardstick,
    *,
    model: Literal["base", "candidate", "released", "teacher"],
    release_id: str,
    text: str,
    timed: bool,
    times: Generated | AnswerRow | None,
    failure: str,
) -> EvaluationRow:
    question = "\n".join(message.content for message in row.messages[:-1] if message.role is Role.USER)
    teacher_answer = row.messages[-1].content if model != "teacher" else ""
    scores: dict[str, float | None] = (
        {}
        if failure
        else score(text, labels=row.labels, question=question, teacher_answer=teacher_answer, yardstick=yardstick)
    )
    return EvaluationRow(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        topic=row.topic,
        model=model,
        release_id=release_id,
        text=text,
        scores=scores,
        timed=timed,
        first_token_ms=times.first_token_ms if isinstance(times, Generated) else None,
        latency_ms=times.latency_ms if times else None,
        prompt_tokens=times.prompt_tokens if times else None,
        completion_tokens=times.completion_tokens if times else None,
        failure=failure,
    )


def yardstick_of(run: Run) -> Yardstick:
    """Return what answers are held against: the handbook's facts and texts, and the words that decline."""
    settings = run.settings
    if settings.handbook is None:
        return Yardstick({}, {}, settings.verify.declining_phrases)
    handbook = Handbook.load(settings.handbook.path)
    texts = {
        article.article_id: "\n".join([article.title, *(section.text for section in article.sections)])
        for article in handbook.articles
    }
    return Yardstick(handbook.facts, texts, settings.verify.declining_phrases)


def _teacher_rows(run: Run) -> dict[str, AnswerRow]:
    path = run.folder / Stage.TEACH / "answers.jsonl"
    return {row.decision_id: row for row in read_rows(path, AnswerRow)} if path.is_file() else {}


def _keep_answers(run: Run, scored: Sequence[EvaluationRow]) -> None:
    """Enter the students' answers into the record, where the console shows them beside the teacher's."""
    for row in scored:
        if row.model != "teacher" and not row.failure:
            decisions.add_answer(
                run.record,
                row.decision_id,
                author=decisions.AnswerAuthor.STUDENT,
                author_name=row.release_id,
                content=row.text,
                run_id=run.run_id,
            )


def _taken(run: Run, each: Contestant, phases: Mapping[str, tuple[int, float]]) -> dict[str, Json]:
    """Return what serving a model takes: memory of the server's processes, weights on disk, turns an hour."""
    together, seconds = phases.get(each.model, (0, 0.0))
    weights = weights_bytes(run.settings.student.base)
    if each.model != "base":
        weights += weights_bytes(Path(releases.release(run.record, each.release_id).weights_path))
    return {
        "release_id": each.release_id,
        "memory_bytes": resident_bytes(each.server.process_id),
        "weights_bytes": weights,
        "turns_together": together,
        "seconds_together": round(seconds, 3),
        "concurrency": run.settings.evaluate.concurrency,
        "server_usd_per_hour": run.settings.evaluate.server_usd_per_hour,
    }


def resident_bytes(process_id: int | None) -> int | None:
    """Return the resident memory of a process and its children (shared pages once for each, proportionally where known)."""
    if process_id is None:
        return None
    try:
        parent = psutil.Process(process_id)
        return sum(_share_of_memory(process) for process in [parent, *parent.children(recursive=True)])
    except psutil.NoSuchProcess:
        return None


def _share_of_memory(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return 0
    return int(getattr(memory, "pss", memory.rss))


def weights_bytes(folder: Path) -> int:
    """Return the bytes of a folder's weights on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def taken(run: Run) -> dict[str, Json]:
    """Return what serving each model took, as the stage wrote it."""
    return read_json(run.folder / Stage.EVALUATE / TAKEN)


def _by_hash(question: Question) -> str:
    return hashlib.sha256(question.decision_id.encode()).hexdigest()


def _journal(path: Path, each: Asked) -> None:
    """Keep an answer at once, so that a killed evaluation asks nothing twice."""
    line = {"model": each.model, "timed": each.timed, **vars(each.generated)}
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _resume(path: Path) -> list[Asked]:
    if not path.is_file():
        return []
    found: list[Asked] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            # The last line of a killed process may be half written.
            continue
        found.append(Asked(values.pop("model"), values.pop("timed"), Generated(**values)))
    return found
