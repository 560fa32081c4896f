"""Assemble: accepted answers become the training and validation sets; held-out decisions become the edition of the test set.

In: the rows of choose, teach and verify, and the handbook. Out: `assemble/train.jsonl`, `validation.jsonl` and `test.jsonl`,
and the record's note of what this run learns from. An edition, once frozen, never changes: the next one is the old one and
the new held-out decisions. Nothing of a held-out conversation or cluster is ever in training, and nothing of an erased one
anywhere. The handbook's own rows are for training alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from conversations import runs
from conversations.decisions import Verdict, freeze_edition, newest_edition
from conversations.errors import Refused
from conversations.messages import Json, Role, Split, content_hash
from conversations.tombstones import erased_among
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.study import Study, study_handbook
from distill.rows import AnswerRow, ChosenRow, DatasetRow, MessageRow, VerdictRow, read_rows, rows_text
from distill.run import Counts, Outcome, Run, Stage

_FILES = {Split.TRAIN: "train.jsonl", Split.VALIDATION: "validation.jsonl", Split.TEST: "test.jsonl"}


def assemble(run: Run) -> Outcome:
    """Write the three sets.

    Raises Refused when no answer is left to learn from.
    """
    chosen = list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))
    answers = {each.decision_id: each for each in read_rows(run.stage_folder(Stage.TEACH) / "answers.jsonl", AnswerRow)}
    verdicts = {each.decision_id: each for each in read_rows(run.stage_folder(Stage.VERIFY) / "verdicts.jsonl", VerdictRow)}
    against = _reasons_against(run, chosen, answers, verdicts)
    unscored = {name for name, reason in against.items() if reason == "no_answer"}
    kept = [row for row in chosen if row.decision_id not in against]
    sets = {
        split: [_dataset_row(row, answers.get(row.decision_id), run) for row in kept if row.split is split]
        for split in Split
    }
    edition, sets[Split.TEST] = _edition(run, sets[Split.TEST])
    study = _study(run, sets[Split.TEST])
    if not sets[Split.TRAIN]:
        raise Refused(
            f"no answer is left to learn from: {len(chosen)} decisions, {_told(against)}; "
            "expected at least one accepted answer in training; see verify/verdicts.jsonl of this run"
        )
    runs.note_use(run.record, run.run_id, {row.decision_id: split for split, rows in sets.items() for row in rows})
    sets[Split.TRAIN] += study.rows
    _assert_apart(sets)
    for split, rows in sets.items():
        run.write_rows(Stage.ASSEMBLE, _FILES[split], rows)
    reasons = Counter(reason for name, reason in against.items() if name not in unscored)
    if study.twins_of_test:
        reasons["twin_of_test"] += study.twins_of_test
    counts = Counts(
        taken_in=len(chosen) + len(study.rows) + study.twins_of_test,
        accepted=len(kept) + len(study.rows),
        rejected=sum(reasons.values()),
        unscored=len(unscored),
        rejected_by_reason=dict(sorted(reasons.items())),
    )
    return Outcome(counts, {**_details(run, sets, edition), "study_rows": len(study.rows)})


def _reasons_against(
    run: Run, chosen: Sequence[ChosenRow], answers: Mapping[str, AnswerRow], verdicts: Mapping[str, VerdictRow]
) -> dict[str, str]:
    """Return why decisions stay out. A held-out one stays in whatever its answer is, once the teacher was asked."""
    against: dict[str, str] = {}
    repeated: Counter[str] = Counter()
    erased = erased_among(run.record, {row.conversation_id for row in chosen})
    refused = run.manifest(Stage.TEACH).details.get("request_refused", [])
    assert isinstance(refused, list)
    for row in chosen:
        answer, verdict = answers.get(row.decision_id), verdicts[row.decision_id]
        if row.conversation_id in erased:
            against[row.decision_id] = "erased"
        elif row.split is Split.TEST:
            # One that the teacher has not been asked for waits for the next edition.
            if answer is None and row.decision_id not in refused:
                against[row.decision_id] = "no_answer"
        elif answer is None or verdict.verdict is Verdict.UNSCORED:
            against[row.decision_id] = "no_answer"
        elif verdict.verdict is Verdict.REJECTED:
            against[row.decision_id] = verdict.reason
        elif row.split is Split.TRAIN:
            repeated[answer.text] += 1
            if repeated[answer.text] > run.settings.assemble.max_rows_per_answer:
                against[row.decision_id] = "answer_repeated"
    return against


def _dataset_row(row: ChosenRow, answer: AnswerRow | None, run: Run) -> DatasetRow:
    text = answer.text if answer else ""
    return DatasetRow(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        cluster_id=row.cluster_id,
        topic=row.topic,
        weight=row.weight,
        teacher=answer.teacher if answer else run.settings.teach.teacher,
        labels=row.labels,
        messages=(*row.messages, MessageRow(role=Role.ASSISTANT, content=text)),
    )


def _edition(run: Run, held_out: Sequence[DatasetRow]) -> tuple[int, list[DatasetRow]]:
    """Return the current edition and its rows; new held-out decisions make the next one, where the old rows stand as they were."""
    edition, frozen = newest_edition(run.record)
    rows = {name: DatasetRow.model_validate(row) for name, row in frozen.items()}
    new = {row.decision_id: row for row in held_out if row.decision_id not in rows}
    rows = dict(sorted({**rows, **new}.items()))
    if new:
        dumped = {name: row.model_dump(mode="json") for name, row in rows.items()}
        edition = freeze_edition(run.record, run.run_id, dumped, _digest(list(rows.values())))
    return edition, list(rows.values())


def _study(run: Run, held_out: Sequence[DatasetRow]) -> Study:
    settings = run.settings
    if settings.handbook is None or not settings.assemble.study_handbook:
        return Study((), 0)
    return study_handbook(
        Handbook.load(settings.handbook.path),
        [row.messages[-2].content for row in held_out],
        system_prompt=settings.prompt.system,
        rules=settings.redaction.rules,
        near_duplicate_jaccard=settings.choose.near_duplicate_jaccard,
    )


def _digest(rows: Sequence[DatasetRow]) -> str:
    return content_hash(rows_text(rows))


def _assert_apart(sets: Mapping[Split, Sequence[DatasetRow]]) -> None:
    """Make sure that nothing held out is learnt: no decision, no conversation, no cluster."""
    learnt = [*sets[Split.TRAIN], *sets[Split.VALIDATION]]
    for key in ("decision_id", "conversation_id", "cluster_id"):
        both = {row.model_dump()[key] for row in sets[Split.TEST]} & {row.model_dump()[key] for row in learnt}
        assert not both, f"held out and learnt from at once: {key} {sorted(both)[:3]}"


def _details(run: Run, sets: Mapping[Split, Sequence[DatasetRow]], edition: int) -> dict[str, Json]:
    teacher = run.settings.teachers[run.settings.teach.teacher]
    topics: dict[str, Json] = {}
    for topic in sorted({row.topic for rows in sets.values() for row in rows}):
        topics[topic] = {split.value: sum(row.topic == topic for row in rows) for split, rows in sets.items()}
    test = sets[Split.TEST]
    return {
        "test_edition": edition,
        "test_digest": _digest(test),
        "rows": {split.value: len(rows) for split, rows in sets.items()},
        "test_answerable": sum(bool(row.labels.answerable) for row in test),
        "test_unanswerable": sum(row.labels.answerable is False for row in test),
        "topics": topics,
        "teacher": run.settings.teach.teacher,
        "teacher_model": teacher.model,
        "teacher_licence_allows_training": teacher.licence_allows_training,
    }


def _told(against: Mapping[str, str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(against.values()).items())) or "none chosen"
