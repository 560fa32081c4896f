"""Assemble: accepted answers become the training and validation sets; held-out decisions become the edition of the test set.

In: the rows of choose, teach and verify, the handbook, and what operators approved. Out: `assemble/train.jsonl`,
`validation.jsonl` and `test.jsonl`, in `replay.jsonl` what earlier runs taught and may be learnt again, in `soft_labels.jsonl` what
teachers believed, the data card, and the record's note of what this run learns from. An edition, once frozen, never changes: the
next one is the old one and the new held-out decisions. Nothing of a held-out conversation, cluster or answer is ever in training,
and nothing of an erased one anywhere. The handbook's own rows are for training alone. The files are the same, byte for byte, however
often the run was killed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from conversations import lineage
from conversations.decisions import Verdict
from conversations.dialogues import without_consent
from conversations.editions import Edition, newest_edition, next_edition
from conversations.errors import OperatorError, Refused
from conversations.messages import Consent, Json, Split
from conversations.reviews import approved_answers
from conversations.tombstones import erased_among
from distill.dataset.assembling.balance import Weighed, surplus
from distill.dataset.assembling.card import write_card
from distill.dataset.assembling.figures import Figures
from distill.dataset.assembling.leaks import HeldOut, KnownTexts, references_of
from distill.dataset.assembling.logged import logged_replies
from distill.dataset.assembling.refusals import UNSUPPORTED, honest_refusals
from distill.dataset.assembling.replay import Replay, write_replay
from distill.dataset.assembling.rows import Sources, is_accepted, read_sources, write_lines
from distill.dataset.assembling.soft_labels import SoftLabelling
from distill.dataset.choosing.taught import known_passages
from distill.dataset.handbook.answering import DECLINED, GREETING, WELCOME
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.study import Study, study_handbook
from distill.rows import SOFT_LABELS_FILE, ChosenRow, DatasetRow
from distill.run import Counts, Outcome, Run, Stage

_FILES = {Split.TRAIN: "train.jsonl", Split.VALIDATION: "validation.jsonl", Split.TEST: "test.jsonl"}
_NO_ANSWER = "no_answer"


@dataclass
class _Sorting:
    """What becomes of the chosen decisions: why some stay out, and which are taught as not known."""

    chosen: int = 0
    against: dict[str, str] = field(default_factory=dict)
    unscored: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    unknown_surplus: int = 0
    withdrawn: frozenset[str] = frozenset()
    tested: dict[str, str] = field(default_factory=dict)
    logged: dict[str, str] = field(default_factory=dict)

    def keeps(self, row: ChosenRow) -> bool:
        """Tell whether a decision is still in."""
        return row.decision_id not in self.against and row.decision_id not in self.unscored


@dataclass(frozen=True)
class _Tested:
    """The edition and what training must not know of it."""

    edition: Edition
    held_out: HeldOut
    questions: tuple[str, ...]


def assemble(run: Run) -> Outcome:
    """Write the three sets and the card.

    Raises Refused when no answer is left to learn from, OperatorError for a record whose editions are of another task.
    """
    sources = read_sources(run, approved_answers(run.record))
    handbook = Handbook.load(run.settings.handbook.path) if run.settings.handbook else None
    figures = Figures()
    sorting = _sort(sources)
    run.report_progress(Stage.ASSEMBLE, 0.2)
    tested = _tested(run, sorting, handbook, figures)
    _leave_out_leaks(sources, sorting, tested.held_out)
    run.report_progress(Stage.ASSEMBLE, 0.5)
    _leave_out_surplus(sources, sorting)
    study, studied_before = _study(run, handbook, tested.questions)
    splits = _write_learnt(sources, sorting, study, figures)
    run.report_progress(Stage.ASSEMBLE, 0.8)
    if Split.TRAIN not in splits.values():
        raise Refused(
            f"no answer is left to learn from: {sorting.chosen} decisions, {_told(sorting)}; "
            "expected at least one accepted answer in training; see verify/verdicts.jsonl of this run"
        )
    write_lines(run.stage_folder(Stage.ASSEMBLE) / _FILES[Split.TEST], tested.edition.lines.values())
    replay = write_replay(
        sources, handbook, tested.held_out, studied=studied_before, taught_now=splits.keys(), withdrawn=sorting.withdrawn
    )
    # What may be replayed counts as learnt until training has drawn from it and says what it took.
    learnt = {**dict.fromkeys(replay.decision_ids, Split.TRAIN), **splits}
    lineage.note_use(run.record, run.run_id, {**learnt, **dict.fromkeys(tested.edition.lines, Split.TEST)})
    lineage.note_passages(run.record, run.run_id, figures.passages)
    counts = _counts(sorting, study, replay)
    beliefs = _write_soft_labels(sources, sorting, splits)
    details = {**_details(run, sorting, tested, study, figures), "replay": replay.figures(), "soft_labels": beliefs}
    write_card(run, counts, details, figures)
    return Outcome(counts, details)


def _sort(sources: Sources) -> _Sorting:
    """Sort the decisions by their answers. A held-out one stays in whatever its answer is, once the teacher was asked."""
    run, sorting = sources.run, _Sorting()
    refused = run.manifest(Stage.TEACH).details.get("request_refused", [])
    assert isinstance(refused, list)
    held = newest_edition(run.record).lines.keys()
    erased = erased_among(run.record, {row.conversation_id for row in sources.chosen()})
    sorting.withdrawn = without_consent(
        run.record, {Consent.YES, Consent.UNKNOWN} if run.settings.choose.learn_from_unknown_consent else {Consent.YES}
    )
    unsupported: list[ChosenRow] = []
    answered: Counter[bool] = Counter()
    for row in sources.chosen():
        sorting.chosen += 1
        name, answer, verdict = row.decision_id, sources.answers.get(row.decision_id), sources.verdicts.get(row.decision_id)
        if row.conversation_id in erased:
            sorting.against[name] = "erased"
        elif row.conversation_id in sorting.withdrawn:
            sorting.against[name] = "consent_withdrawn"
        elif row.split is Split.TEST:
            # One that the teacher has not been asked for waits for the next edition.
            if answer is None and name not in refused and name not in held:
                sorting.unscored[name] = _NO_ANSWER
                continue
            sorting.tested[name] = sources.dataset_row(row).model_dump_json()
            sorting.logged[name] = row.logged.content if row.logged else ""
        elif answer is None or verdict is None:
            sorting.unscored[name] = _NO_ANSWER
        elif verdict.verdict is Verdict.UNSCORED:
            sorting.unscored[name] = verdict.reason or _NO_ANSWER
        elif not is_accepted(verdict):
            sorting.against[name] = verdict.reason
            if verdict.reason in UNSUPPORTED:
                unsupported.append(row)
        else:
            answered[verdict.reason == "declined"] += 1
    sorting.unknown, sorting.unknown_surplus = honest_refusals(
        run.settings, unsupported, answered=answered[False], declined=answered[True]
    )
    for name in sorting.unknown:
        del sorting.against[name]
    return sorting


def _tested(run: Run, sorting: _Sorting, handbook: Handbook | None, figures: Figures) -> _Tested:
    """Freeze the edition, and gather what must not be learnt of it."""
    _check_tasks(run, sorting)
    newest = newest_edition(run.record).lines
    conversation_of = {name: DatasetRow.model_validate_json(line).conversation_id for name, line in newest.items()}
    withdrawn = {name for name, conversation in conversation_of.items() if conversation in sorting.withdrawn}
    edition = next_edition(run.record, run.run_id, sorting.tested, withdrawn=withdrawn)
    unchosen = edition.lines.keys() - sorting.logged.keys()
    replies = logged_replies(run.record, run.settings, unchosen)
    passages = [passage.text for passage in handbook.passages.values()] if handbook else []
    known = KnownTexts(passages, (run.settings.assemble.unknown_answer, DECLINED, WELCOME, GREETING))
    held_out = HeldOut(run.settings.choose.near_duplicate_jaccard)
    questions: list[str] = []
    for line in edition.lines.values():
        row = DatasetRow.model_validate_json(line)
        said = replies.get(row.decision_id, ()) or (sorting.logged.get(row.decision_id, ""),)
        held_out.add(row, references_of(row, said), known)
        questions.append(row.question)
        figures.add(row, Split.TEST)
    sorting.tested.clear()
    sorting.logged.clear()
    return _Tested(edition, held_out, tuple(questions))


def _check_tasks(run: Run, sorting: _Sorting) -> None:
    """Make sure that an edition never mixes tasks: its figures would mean nothing."""
    lines = [*newest_edition(run.record).lines.values(), *sorting.tested.values()]
    tasks = sorted({DatasetRow.model_validate_json(line).task.value for line in lines})
    if len(tasks) > 1:
        raise OperatorError(
            f"{run.record.path}: the test set would hold rows of {' and '.join(tasks)}; expected one task in a record; "
            "give the data set of files a record of its own ([record] path)"
        )


def _leave_out_leaks(sources: Sources, sorting: _Sorting, held_out: HeldOut) -> None:
    ours = frozenset({sources.run.settings.prompt.system})
    for row in sources.chosen():
        if row.split is not Split.TEST and sorting.keeps(row):
            reason = held_out.reason_against(row, ours)
            if reason:
                sorting.against[row.decision_id] = reason
                sorting.unknown.discard(row.decision_id)


def _leave_out_surplus(sources: Sources, sorting: _Sorting) -> None:
    """Leave out of training what repeats one answer too often, and what would put the set out of balance."""
    table = sources.run.settings.assemble
    repeated: Counter[tuple[str, str]] = Counter()
    weighed: list[Weighed] = []
    for row in sources.chosen():
        if row.split is not Split.TRAIN or not sorting.keeps(row):
            continue
        learnt = sources.dataset_row(row, as_unknown=row.decision_id in sorting.unknown)
        answer = learnt.messages[-1].content, learnt.messages[-1].extra_json
        repeated[answer] += 1
        if repeated[answer] > table.max_rows_per_answer:
            sorting.against[row.decision_id] = "answer_repeated"
        else:
            weighed.append(Weighed(row.decision_id, row.topic, row.turn_depth, learnt.weight))
    sorting.against |= surplus(weighed, max_topic_share=table.max_topic_share, max_depth_share=table.max_depth_share)
    sorting.unknown -= sorting.against.keys()


def _study(run: Run, handbook: Handbook | None, held_out: tuple[str, ...]) -> tuple[Study, list[DatasetRow]]:
    """Return what is studied of the handbook now, and the rows that were before and need not be again."""
    # A data set of files teaches its own task: what stands in the handbook is no part of it.
    if handbook is None or not run.settings.assemble.study_handbook or run.settings.datasets is not None:
        return Study((), 0), []
    every = study_handbook(
        handbook,
        held_out,
        system_prompt=run.settings.prompt.system,
        rules=run.settings.redaction.rules,
        near_duplicate_jaccard=run.settings.choose.near_duplicate_jaccard,
    )
    starts_from = run.manifest(Stage.CHOOSE).details.get("starts_from")
    known = known_passages(run.record, run.settings, run.run_id, str(starts_from) if starts_from else None)
    before = [row for row in every.rows if known.issuperset(row.passages)]
    return replace(every, rows=tuple(row for row in every.rows if not known.issuperset(row.passages))), before


def _write_learnt(sources: Sources, sorting: _Sorting, study: Study, figures: Figures) -> dict[str, Split]:
    """Write the training and the validation set; return which decision of the record is in which."""
    splits: dict[str, Split] = {}

    def lines(split: Split) -> Iterator[str]:
        for row in sources.chosen():
            if row.split is split and sorting.keeps(row):
                learnt = sources.dataset_row(row, as_unknown=row.decision_id in sorting.unknown)
                answer = None if row.decision_id in sorting.unknown else sources.answers.get(row.decision_id)
                figures.add(learnt, split, answer.author.value if answer else "settings")
                splits[row.decision_id] = split
                yield learnt.model_dump_json()
        for studied in study.rows if split is Split.TRAIN else ():
            figures.add(studied, split, "handbook")
            yield studied.model_dump_json()

    folder = sources.run.stage_folder(Stage.ASSEMBLE)
    for split in (Split.TRAIN, Split.VALIDATION):
        write_lines(folder / _FILES[split], lines(split))
    return splits


def _write_soft_labels(sources: Sources, sorting: _Sorting, splits: Mapping[str, Split]) -> dict[str, Json]:
    """Write what teachers believed while they gave the answers that are learnt, in the order of the rows."""
    teachers = sources.run.settings.teachers.items()
    labelling = SoftLabelling(sources.run.record, (name for name, table in teachers if table.top_logprobs))
    learnt = (
        (sources.dataset_row(row), sources.answers.get(row.decision_id))
        for split in (Split.TRAIN, Split.VALIDATION)
        for row in sources.chosen()
        if splits.get(row.decision_id) is split and row.decision_id not in sorting.unknown
    )
    write_lines(sources.run.stage_folder(Stage.ASSEMBLE) / SOFT_LABELS_FILE, labelling.lines(learnt))
    return labelling.figures()


def _counts(sorting: _Sorting, study: Study, replay: Replay) -> Counts:
    reasons = Counter(sorting.against.values()) + replay.left_out
    if study.twins_of_test:
        reasons["twin_of_test"] += study.twins_of_test
    return Counts(
        taken_in=sorting.chosen + len(study.rows) + study.twins_of_test + replay.considered,
        accepted=sorting.chosen - len(sorting.against) - len(sorting.unscored) + len(study.rows) + replay.rows,
        rejected=sum(reasons.values()),
        unscored=len(sorting.unscored),
        rejected_by_reason=dict(sorted(reasons.items())),
    )


def _details(run: Run, sorting: _Sorting, tested: _Tested, study: Study, figures: Figures) -> dict[str, Json]:
    teacher = run.settings.teachers[run.settings.teach.teacher]
    edition = tested.edition
    teachers: dict[str, Json] = {
        name: {"rows": count, "licence_allows_training": figures.licence_of[name]}
        for name, count in sorted(figures.learnt_by_teacher().items())
    }
    return {
        "test_edition": edition.edition,
        "test_digest": edition.digest,
        "test_rows_new_in_edition": edition.added_rows,
        "test_edition_follows_erasure": edition.follows_erasure,
        "test_rows_withdrawn": edition.withdrawn_rows,
        "rows": {split.value: figures.rows(split) for split in Split},
        "test_answerable": figures.answerable[True],
        "test_unanswerable": figures.answerable[False],
        "topics": figures.table("topic"),
        "teacher": run.settings.teach.teacher,
        "teacher_model": teacher.model,
        "teacher_licence_allows_training": teacher.licence_allows_training,
        "teachers": teachers,
        "study_rows": len(study.rows),
        "honest_refusals": len(sorting.unknown),
        "honest_refusal_surplus": sorting.unknown_surplus,
        "tool_call_rows": figures.tool_calls,
        "unscored_by_reason": dict(sorted(Counter(sorting.unscored.values()).items())),
        "test_references": dict(sorted(tested.held_out.counts.items())),
    }


def _told(sorting: _Sorting) -> str:
    found: Mapping[str, int] = Counter([*sorting.against.values(), *sorting.unscored.values()])
    return ", ".join(f"{count} {reason}" for reason, count in sorted(found.items())) or "none chosen"
