"""The stage `evaluate`: base, candidate, release in service and teacher on the same frozen questions.

In: the test edition and the trained weights. Out: `rows.jsonl`, one answer a line with its scores; `taken.json`, what serving each
model takes; and where the settings name a judge, `judged.jsonl` with every ruling and `judge.json` with how it judges. Students
answer over the serving path of customers.
"""

import asyncio
import json
from collections.abc import Sequence

from conversations import decisions
from conversations.decisions import NewAnswer
from conversations.errors import OperatorError
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.changes import without_retired
from distill.evaluation.answering.asking import Answers, Together, ask_all
from distill.evaluation.answering.contestants import contestants, register_candidate
from distill.evaluation.answering.taken import taken_by
from distill.evaluation.scoring.judged import Judged, judged, with_rulings
from distill.evaluation.scoring.row import MODELS, Given, row_of, with_similarities
from distill.evaluation.scoring.standards import standards_of
from distill.rows import AnswerRow, DatasetRow, EvaluationRow, read_rows
from distill.run import Counts, Outcome, Run, Stage, write_whole

ROWS = "rows.jsonl"
TAKEN = "taken.json"
JUDGED_ROWS = "judged.jsonl"
JUDGE = "judge.json"


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
    measured = contestants(run, candidate)
    answers = asyncio.run(ask_all(run, rows, measured))
    scored, rulings = _scored(run, rows, _given(run, rows, answers))
    scored = _keep(run, scored, rulings)
    taken = {each.model: taken_by(run, each, answers.together.get(each.model, Together())) for each in measured}
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
        {
            "candidate": candidate,
            "decisions": len({row.decision_id for row in scored}),
            "models": [each.model for each in measured] + ["teacher"],
            **({"judge": dict(rulings.details)} if rulings else {}),
        },
    )


def _given(run: Run, rows: Sequence[DatasetRow], answers: Answers) -> list[tuple[DatasetRow, Given]]:
    """Return every answer beside its row, the teacher's from the edition among them, in the order of decisions and models."""
    edition = {row.decision_id: row for row in rows}
    found = [
        (
            edition[each.generated.decision_id],
            Given(
                model=each.model,
                release_id=answers.release_ids[each.model],
                timed=each.timed,
                **{name: value for name, value in vars(each.generated).items() if name != "decision_id"},
            ),
        )
        for each in answers.asked
    ]
    taught = _taught(run)
    found += [(row, _of_teacher(row, taught.get(row.decision_id))) for row in rows]
    return sorted(found, key=lambda each: (each[0].decision_id, MODELS.index(each[1].model)))


def _of_teacher(row: DatasetRow, reply: AnswerRow | None) -> Given:
    """Return the teacher's answer of the edition, with its times where it was asked for live and not in a batch."""
    text = row.messages[-1].content
    # An edition's answer may be an earlier run's, and the teacher may say another thing today.
    is_this = reply is not None and reply.text == text
    # What a person said and what came in a batch took no time that anybody measured.
    timed = reply if reply is not None and reply.latency_ms > 0 else None
    return Given(
        model="teacher",
        release_id=row.teacher,
        text=text,
        timed=timed is not None,
        latency_ms=timed.latency_ms if timed else None,
        prompt_tokens=timed.prompt_tokens if timed else None,
        completion_tokens=timed.completion_tokens if timed else None,
        finish_reason=reply.finish_reason if reply and is_this else "",
        failure="" if text else "the teacher gave no answer",
    )


def _taught(run: Run) -> dict[str, AnswerRow]:
    path = run.folder / Stage.TEACH / "answers.jsonl"
    return {row.decision_id: row for row in read_rows(path, AnswerRow)} if path.is_file() else {}


def _scored(
    run: Run, rows: Sequence[DatasetRow], given: Sequence[tuple[DatasetRow, Given]]
) -> tuple[list[EvaluationRow], Judged | None]:
    """Score every answer; return the rows, and what the judge said, None where nobody was asked."""
    handbook = Handbook.load(run.settings.handbook.path) if run.settings.handbook else None
    standards = standards_of(run, handbook, [each.text for _, each in given])
    # The edition stays as it is; what the handbook no longer says is expected of nobody.
    edition = {row.decision_id: row.model_copy(update={"labels": without_retired(row.labels, handbook)}) for row in rows}
    scored = [row_of(edition[row.decision_id], each, standards) for row, each in given]
    scored = with_similarities(scored, edition)
    if run.settings.judge is None or not run.settings.evaluate.judged_decisions:
        return scored, None

    def tell(share: float, note: str) -> None:
        run.report_progress(Stage.EVALUATE, 0.9 + 0.09 * share, note)

    found = asyncio.run(judged(run, scored, edition, standards, tell))
    return with_rulings(scored, found.rulings), found


def _keep(run: Run, scored: Sequence[EvaluationRow], rulings: Judged | None) -> list[EvaluationRow]:
    """Write the rows and what the judge said, and enter the students' answers into the record, for the console; return the rows.

    Nothing is kept of what was erased meanwhile: an erasure changes the record first and the files after, so the files are written
    while the record stands still.
    """
    with run.record.write() as transaction:
        there = decisions.there_among(transaction, {row.decision_id for row in scored})
        kept = [row for row in scored if row.decision_id in there]
        run.write_rows(Stage.EVALUATE, ROWS, kept)
        if rulings:
            run.write_rows(Stage.EVALUATE, JUDGED_ROWS, [each for each in rulings.rulings if each.decision_id in there])
        said = [
            NewAnswer(row.decision_id, decisions.AnswerAuthor.STUDENT, row.release_id, row.text)
            for row in kept
            if row.model != "teacher" and not row.failure
        ]
        decisions.add_answers_in(transaction, said, run_id=run.run_id)
    if rulings:
        text = json.dumps(dict(rulings.details), indent=2, ensure_ascii=False) + "\n"
        write_whole(run.stage_folder(Stage.EVALUATE) / JUDGE, text)
    return kept
