"""Choose: which customer questions are worth teaching, redacted, each with its reasons and its split for ever.

In: the record. Out: `choose/decisions.jsonl`, and the decisions and the vectors of their questions in the record. A decision is one
customer question with its logged history. The path: every candidate of the log; clusters over the whole record, and with them the
split; what may be learnt, without duplicates; then, among what is left, twins by meaning and topics, and the limit. Only what was
chosen is read again and redacted. Every candidate is chosen or left out for one reason.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from conversations import decisions as kept
from conversations.errors import Refused
from conversations.messages import Json, Split, messages_hash
from conversations.redaction import SecondPass
from conversations.store import Record
from conversations.vectors import put_vectors
from conversations.vectors import vectors as kept_vectors
from distill.dataset.choosing.candidates import Candidate, candidates
from distill.dataset.choosing.clusters import Clusters, LeftOut, Placed
from distill.dataset.choosing.files import choose_from_files
from distill.dataset.choosing.rows import Wanted, chosen_rows
from distill.dataset.choosing.selection import fills, strength, within_limit, without_further_twins, worth_teaching
from distill.dataset.choosing.signals import with_new_topic
from distill.dataset.choosing.taught import known_already, starting_release, without_known
from distill.dataset.choosing.topics import topics_of
from distill.dataset.handbook.articles import Handbook
from distill.dataset.prompt_names import prompt_name
from distill.dataset.second_pass import second_pass
from distill.dataset.similarity import EMBEDDING_PACKAGE, Vectors, load_embedder, near_duplicates_of
from distill.rows import ChosenRow, RowModel, read_rows
from distill.run import Counts, Outcome, Run, Stage, read_json, write_whole
from distill.settings import DistillSettings

# More than the limit are embedded, so that what twins and full topics cost can be made up for.
_POOL_SHARE = 1.15
_EMBEDDED_AT_ONCE = 4096


@dataclass(frozen=True)
class Choice:
    """What was chosen, what the record is to keep of it, and how many were not chosen, by reason.

    `starts_from` is the release that the student of this run learns on from, None for the base student.
    """

    rows: tuple[ChosenRow, ...]
    decisions: tuple[kept.Decision, ...]
    vectors: Mapping[str, bytes]
    left_out: Mapping[str, int]
    starts_from: str | None
    seconds: Mapping[str, float]


class _Tally(RowModel):
    """What a choice left out and rests on, written beside its rows so that a killed stage need not choose again."""

    left_out: dict[str, int]
    starts_from: str | None = None


@dataclass
class _Watch:
    """How long each part took, and who is told how far the work is."""

    tell: Callable[[float, str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def done(self, part: str, share: float, following: str) -> None:
        now = time.monotonic()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self._began, 3)
        self._began = now
        self.tell(share, following)


def choose(run: Run) -> Outcome:
    """Choose the decisions of a run and enter them into the record.

    The rows are written first and the decisions after them, in one step: a stage that was killed behind that takes the rows as
    they are, because their splits are decided. Raises Refused when there is nothing to choose.
    """
    if run.settings.datasets is not None:
        return choose_from_files(run)
    folder = run.stage_folder(Stage.CHOOSE)
    decided = kept.decisions(run.record)
    if any(each.chosen_by_run_id == run.run_id for each in decided):
        return _taken_up(run, {each.decision_id for each in decided})
    choice = plan_decisions(
        run.record,
        run.settings,
        with_topics=True,
        second_pass=second_pass(run.settings.redaction),
        run_id=run.run_id,
        progress=lambda share, note: run.report_progress(Stage.CHOOSE, share, note),
    )
    if not choice.rows:
        told = ", ".join(f"{count} {name}" for name, count in sorted(choice.left_out.items())) or "the record holds none"
        raise Refused(
            f"no customer question is there to be taught (left out: {told}); import conversations, and where they are yours to "
            'use but say nothing of consent, mark them "consent": true or set [choose] learn_from_unknown_consent = true'
        )
    began = time.monotonic()
    tally = _Tally(left_out=dict(sorted(choice.left_out.items())), starts_from=choice.starts_from)
    write_whole(folder / "counts.json", tally.model_dump_json(indent=2) + "\n")
    run.write_rows(Stage.CHOOSE, "decisions.jsonl", choice.rows)
    there = kept.put_decisions(run.record, choice.decisions)
    put_vectors(run.record, EMBEDDING_PACKAGE, choice.vectors)
    if any(row.decision_id not in there for row in choice.rows):
        return _taken_up(run, there)
    return _outcome(choice.rows, tally, {**choice.seconds, "write": round(time.monotonic() - began, 3)})


def plan_decisions(
    record: Record,
    settings: DistillSettings,
    *,
    with_topics: bool,
    second_pass: SecondPass | None = None,
    run_id: str = "",
    progress: Callable[[float, str], None] = lambda share, note: None,
) -> Choice:
    """Return what a run chooses from the record as it is now, writing nothing.

    Without topics no embedding model is loaded, and without a second pass no Presidio; a dry run has no use for either, because
    it sends nothing. It then knows no twins by meaning and no full topics, so a run chooses a few less, or others, than it says.
    """
    watch = _Watch(progress)
    table = settings.choose
    left_out: dict[str, LeftOut] = {}
    starts_from = starting_release(record, settings)
    every = list(candidates(record, settings))
    watch.done("read", 0.1, "clusters")
    known = {decision.decision_id: decision for decision in kept.decisions(record)}
    tested = {name for name, decision in known.items() if decision.split is Split.TEST}
    clusters = Clusters(every, known, table, table.split_salt or record.fact("split_salt"))
    worth = worth_teaching(every, known, table, left_out)
    worth = without_known(worth, known, known_already(record, settings, run_id, starts_from), left_out)
    placed = clusters.place(worth, left_out)
    placed = clusters.without_twins_of_test(placed, left_out)
    placed = without_further_twins(placed, known, clusters, table.max_twins, left_out)
    watch.done("cluster", 0.2, "embeddings" if with_topics else "rows")
    topics: dict[str, str] = {}
    vectors: dict[str, Vectors] = {}
    if with_topics:
        vectors, topics, placed = _compared_by_meaning(record, every, placed, known, clusters, settings, left_out, watch)
    placed = within_limit(placed, table, table.max_decisions, topics, left_out, tested)
    watch.done("select", 0.75, "personal data")
    wanted = [_wanted(each, topics) for each in placed]
    made = {row.decision_id: row for row in chosen_rows(record, settings, wanted, second_pass)}
    placed = _once_more(placed, made, known, settings, left_out)
    watch.done("redact", 0.95, "writing")
    assert len(every) == len(placed) + len(left_out), "a candidate was lost, or chosen and left out at once"
    placed.sort(key=lambda each: each.name)
    return Choice(
        rows=tuple(made[each.name] for each in placed),
        decisions=tuple(_decision(each, made[each.name], run_id) for each in placed),
        vectors={each.name: vectors[each.name].astype(np.float16).tobytes() for each in placed if each.name in vectors},
        left_out=dict(Counter(reason.value for reason in left_out.values())),
        starts_from=starts_from,
        seconds=watch.seconds,
    )


def _compared_by_meaning(
    record: Record,
    every: Sequence[Candidate],
    placed: Sequence[Placed],
    known: Mapping[str, kept.Decision],
    clusters: Clusters,
    settings: DistillSettings,
    left_out: dict[str, LeftOut],
    watch: _Watch,
) -> tuple[dict[str, Vectors], dict[str, str], list[Placed]]:
    """Embed what the limit may take, leave out twins by meaning and name topics; where that leaves places free, embed more."""
    table = settings.choose
    tested = {name for name, decision in known.items() if decision.split is Split.TEST}
    size = round(_POOL_SHARE * table.max_decisions)
    while True:
        cut: dict[str, LeftOut] = {}
        pool = within_limit(placed, table, size, {}, cut, tested)
        vectors = _vectors(record, every, {each.name for each in pool} | known.keys(), watch.tell)
        watch.done("embed", 0.7, "twins by meaning")
        found = _without_twins_by_meaning(pool, vectors, known, clusters, settings, cut)
        topics, found = _topics(found, vectors, known, settings)
        if len(pool) == len(placed) or fills(found, table, table.max_decisions, topics):
            left_out.update(cut)
            return vectors, topics, found
        size *= 2


def _vectors(
    record: Record, every: Sequence[Candidate], wanted: Collection[str], progress: Callable[[float, str], None]
) -> dict[str, Vectors]:
    """Return the vectors of the wanted questions: those that the record keeps, and the others embedded now, each text once."""
    names = [each.decision_id for each in every if each.decision_id in wanted]
    kept_now = kept_vectors(record, EMBEDDING_PACKAGE)
    found = {name: np.frombuffer(kept_now[name], np.float16).astype(np.float32) for name in names if name in kept_now}
    missing: dict[str, list[str]] = {}
    for each in every:
        if each.decision_id in wanted and each.decision_id not in found:
            missing.setdefault(each.question, []).append(each.decision_id)
    # Texts of one length together, so that none is padded.
    texts = sorted(missing, key=lambda text: (len(text), text))
    for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
        progress(0.2 + 0.5 * start / len(texts), f"embeddings: {start} of {len(texts)}")
        some = texts[start : start + _EMBEDDED_AT_ONCE]
        # Rounded as the record keeps them, so that a later run sees the same.
        for text, vector in zip(some, load_embedder().embed(some).astype(np.float16).astype(np.float32), strict=True):
            found.update(dict.fromkeys(missing[text], vector))
    return found


def _without_twins_by_meaning(
    pool: Sequence[Placed],
    vectors: Mapping[str, Vectors],
    known: Mapping[str, kept.Decision],
    clusters: Clusters,
    settings: DistillSettings,
    left_out: dict[str, LeftOut],
) -> list[Placed]:
    """Join what means the same and place it again: a cluster that grew so may have another split, or none any more."""
    if not pool:
        return []
    names = sorted(vectors)
    if not names:
        return []
    clusters.join_by_meaning(names, np.stack([vectors[name] for name in names]))
    placed = clusters.place([each.candidate for each in pool], left_out)
    placed = clusters.without_twins_of_test(placed, left_out)
    return without_further_twins(placed, known, clusters, settings.choose.max_twins, left_out)


def _topics(
    placed: Sequence[Placed], vectors: Mapping[str, Vectors], known: Mapping[str, kept.Decision], settings: DistillSettings
) -> tuple[dict[str, str], list[Placed]]:
    """Return the topic of each question, and the questions, those of a topic that is new to the record with that signal."""
    ordered = sorted(placed, key=lambda each: each.name)
    earlier: dict[str, list[Vectors]] = {}
    for name, decision in sorted(known.items()):
        if name in vectors and decision.topic:
            earlier.setdefault(decision.topic, []).append(vectors[name])
    named = topics_of(
        [each.candidate.question for each in ordered],
        np.stack([vectors[each.name] for each in ordered]) if ordered else np.zeros((0, 0), np.float32),
        Handbook.load(settings.handbook.path) if settings.handbook else None,
        {topic: np.stack(members) for topic, members in earlier.items()},
    )
    topics = {each.name: topic for each, topic in zip(ordered, named, strict=True)}
    met = {decision.topic for decision in known.values()}
    return topics, [
        replace(each, candidate=replace(each.candidate, signals=with_new_topic(each.candidate.signals)))
        if met and each.name not in known and topics[each.name] not in met
        else each
        for each in placed
    ]


def _once_more(
    placed: Sequence[Placed],
    made: Mapping[str, ChosenRow],
    known: Mapping[str, kept.Decision],
    settings: DistillSettings,
    left_out: dict[str, LeftOut],
) -> list[Placed]:
    """Look at the words as they will be taught: redacting a whole conversation can make alike what was not."""
    left = [each for each in placed if each.name in made]
    left_out.update((each.name, LeftOut.GONE) for each in placed if each.name not in made)
    seen: set[str] = set()
    for each in sorted(left, key=lambda each: (each.name not in known, strength(each))):
        asked = _history_hash(made[each.name])
        if asked in seen and each.name not in known:
            left_out[each.name] = LeftOut.DUPLICATE
        seen.add(asked)
    learnt = [each.name for each in left if each.split is not Split.TEST]
    held_out = [made[each.name].question for each in left if each.split is Split.TEST]
    texts = [made[name].question for name in learnt]
    twins = near_duplicates_of(held_out, texts, settings.choose.near_duplicate_jaccard)
    tested = {prompt_name(made[each.name].messages) for each in left if each.split is Split.TEST} - {None}
    twins |= {place for place, name in enumerate(learnt) if prompt_name(made[name].messages) in tested}
    left_out.update((learnt[place], LeftOut.TWIN_OF_TEST) for place in twins)
    return [each for each in left if each.name not in left_out]


def _wanted(placed: Placed, topics: Mapping[str, str]) -> Wanted:
    return Wanted(
        decision_id=placed.name,
        conversation_id=placed.candidate.conversation_id,
        question_turn_id=placed.candidate.question_turn_id,
        cluster_id=placed.cluster_id,
        topic=topics.get(placed.name, ""),
        split=placed.split,
        signals=placed.candidate.signals,
    )


def _decision(placed: Placed, row: ChosenRow, run_id: str) -> kept.Decision:
    return kept.Decision(
        decision_id=row.decision_id,
        conversation_id=row.conversation_id,
        question_turn_id=placed.candidate.question_turn_id,
        reply_turn_id=placed.candidate.reply_turn_id,
        cluster_id=row.cluster_id,
        split=row.split,
        topic=row.topic,
        history_hash=_history_hash(row),
        chosen_by_run_id=run_id,
        chosen_because=row.chosen_because,
    )


def _history_hash(row: ChosenRow) -> str:
    return messages_hash([message.message() for message in row.messages])


def _taken_up(run: Run, there: Collection[str]) -> Outcome:
    """Finish a stage that was killed after its decisions were entered; what was erased since then is left out."""
    path = run.stage_folder(Stage.CHOOSE)
    written = list(read_rows(path / "decisions.jsonl", ChosenRow))
    rows = [row for row in written if row.decision_id in there]
    tally = _Tally.model_validate(read_json(path / "counts.json"))
    if len(rows) < len(written):
        gone = tally.left_out.get(LeftOut.GONE, 0) + len(written) - len(rows)
        tally = tally.model_copy(update={"left_out": {**tally.left_out, LeftOut.GONE: gone}})
        run.write_rows(Stage.CHOOSE, "decisions.jsonl", rows)
    return _outcome(rows, tally, {})


def _outcome(rows: Sequence[ChosenRow], tally: _Tally, seconds: Mapping[str, float]) -> Outcome:
    rejected = sum(tally.left_out.values())
    counts = Counts(
        taken_in=len(rows) + rejected,
        accepted=len(rows),
        rejected=rejected,
        unscored=0,
        rejected_by_reason=dict(sorted(tally.left_out.items())),
    )
    return Outcome(
        counts,
        {
            "by_split": _counted(row.split for row in rows),
            "by_reason": _counted(row.chosen_because for row in rows),
            "by_signal": _counted(signal for row in rows for signal in row.signals),
            "clusters": len({row.cluster_id for row in rows}),
            "starts_from": tally.starts_from,
            "seconds": dict(seconds),
        },
    )


def _counted(values: Iterable[str]) -> dict[str, Json]:
    return dict(sorted(Counter(map(str, values)).items()))
