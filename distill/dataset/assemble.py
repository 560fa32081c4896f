"""Assemble: accepted answers become the training and validation sets, held-out decisions the test edition.

In: decisions, answers and verdicts of a run. Out: `train.jsonl`, `validation.jsonl`, `test.jsonl`. An edition of the test set
is frozen: the next one is the old one and new held-out decisions. No test decision, conversation or cluster stands in training.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from conversations import decisions, erasure, runs
from conversations.decisions import Verdict
from conversations.messages import Json, Role, Split, canonical_json, content_hash
from distill.rows import AnswerRow, ChosenRow, DatasetRow, MessageRow, VerdictRow, read_rows
from distill.run import Counts, Outcome, Run, Stage

_LEARNT = (Split.TRAIN, Split.VALIDATION)


def assemble(run: Run) -> Outcome:
    """Write the three sets and say where every decision went."""
    rows = list(read_rows(run.folder / Stage.CHOOSE / "decisions.jsonl", ChosenRow))
    answers = {row.decision_id: row for row in read_rows(run.folder / Stage.TEACH / "answers.jsonl", AnswerRow)}
    verdicts = {row.decision_id: row for row in read_rows(run.folder / Stage.VERIFY / "verdicts.jsonl", VerdictRow)}
    edition, digest, test = _edition(run, rows, answers)
    held_out = _HeldOut(test.values())
    sets: dict[Split, list[DatasetRow]] = {Split.TRAIN: [], Split.VALIDATION: []}
    rejected: Counter[str] = Counter()
    per_text: Counter[str] = Counter()
    for row in rows:
        if row.split is Split.TEST:
            continue
        reason = _left_out(run, row, answers, verdicts, held_out)
        if not reason and row.split is Split.TRAIN:
            per_text[answers[row.decision_id].text] += 1
            if per_text[answers[row.decision_id].text] > run.settings.assemble.max_rows_per_answer:
                reason = "answer_too_frequent"
        if reason:
            rejected[reason] += 1
        else:
            sets[row.split].append(_dataset_row(row, answers[row.decision_id]))
    run.write_rows(Stage.ASSEMBLE, "train.jsonl", sets[Split.TRAIN])
    run.write_rows(Stage.ASSEMBLE, "validation.jsonl", sets[Split.VALIDATION])
    run.write_rows(Stage.ASSEMBLE, "test.jsonl", [test[name] for name in sorted(test)])
    used = {each.decision_id: split for split in _LEARNT for each in sets[split]}
    runs.note_use(run.record, run.run_id, used | dict.fromkeys(test, Split.TEST))
    of_this_run = sum(row.split is Split.TEST for row in rows)
    return Outcome(
        Counts(
            taken_in=len(rows),
            accepted=len(used) + of_this_run,
            rejected=sum(rejected.values()),
            unscored=0,
            rejected_by_reason=dict(sorted(rejected.items())),
        ),
        _details(run, sets, test, edition, digest),
    )


class _HeldOut:
    """What training must not touch."""

    def __init__(self, test: Iterable[DatasetRow]) -> None:
        rows = list(test)
        self._decisions = {row.decision_id for row in rows}
        self._conversations = {row.conversation_id for row in rows}
        self._clusters = {row.cluster_id for row in rows}

    def holds(self, row: ChosenRow) -> bool:
        """Tell whether a row belongs to what is held out."""
        return (
            row.decision_id in self._decisions
            or row.conversation_id in self._conversations
            or row.cluster_id in self._clusters
        )


def _left_out(
    run: Run,
    row: ChosenRow,
    answers: Mapping[str, AnswerRow],
    verdicts: Mapping[str, VerdictRow],
    held_out: _HeldOut,
) -> str:
    """Return why a decision is not learnt from, or nothing when it is."""
    verdict = verdicts.get(row.decision_id)
    if row.decision_id not in answers:
        return "not_answered"
    if verdict is None or verdict.verdict is Verdict.UNSCORED:
        return "not_verified"
    if verdict.verdict is Verdict.REJECTED:
        return verdict.reason
    if erasure.is_erased(run.record, "conversation", row.conversation_id):
        return "erased"
    if held_out.holds(row):
        return "held_out_for_test"
    return ""


def _edition(
    run: Run, rows: Sequence[ChosenRow], answers: Mapping[str, AnswerRow]
) -> tuple[int, str, dict[str, DatasetRow]]:
    """Return the test edition: the newest one, or the next where there are new held-out decisions."""
    edition, frozen = decisions.newest_edition(run.record)
    test = {name: DatasetRow.model_validate_json(canonical_json(dict(row))) for name, row in frozen.items()}
    new = {
        row.decision_id: _dataset_row(row, answers.get(row.decision_id))
        for row in rows
        if row.split is Split.TEST and row.decision_id not in test
    }
    test |= new
    as_json: dict[str, dict[str, Json]] = {name: row.model_dump(mode="json") for name, row in sorted(test.items())}
    digest = content_hash(list(as_json.values()))
    if new:
        edition = decisions.freeze_edition(run.record, run.run_id, as_json, digest)
    return edition, digest, test


def _dataset_row(row: ChosenRow, answer: AnswerRow | None) -> DatasetRow:
    reply = MessageRow(role=Role.ASSISTANT, content=answer.text.strip() if answer else "")
    return DatasetRow(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        cluster_id=row.cluster_id,
        topic=row.topic,
        weight=row.weight,
        teacher=answer.teacher if answer else "",
        labels=row.labels,
        messages=(*row.messages, reply),
    )


def _details(
    run: Run,
    sets: Mapping[Split, Sequence[DatasetRow]],
    test: Mapping[str, DatasetRow],
    edition: int,
    digest: str,
) -> dict[str, Json]:
    teacher = run.settings.teachers[run.settings.teach.teacher]
    topics = Counter(row.topic for row in sets[Split.TRAIN])
    by_topic: dict[str, Json] = dict(sorted(topics.items()))
    return {
        "edition": edition,
        "test_digest": digest,
        "train": len(sets[Split.TRAIN]),
        "validation": len(sets[Split.VALIDATION]),
        "test": len(test),
        "test_with_facts": sum(bool(row.labels.facts) for row in test.values()),
        "train_by_topic": by_topic,
        "teacher": run.settings.teach.teacher,
        "licence_allows_training": teacher.licence_allows_training,
    }
