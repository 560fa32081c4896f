"""Choose: which customer questions are worth teaching, redacted, each with its reason and its split for ever.

In: the record. Out: `choose/decisions.jsonl` and the decisions in the record. A decision is one customer question with its
logged history. Its split is a salted hash of its cluster: near-duplicate questions over the whole record, all questions of a
conversation, and everything of one customer, together. What was decided once stays; what would join two splits is left out.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations import decisions as kept
from conversations import turns as log
from conversations.errors import Refused
from conversations.messages import (
    Author,
    ChatMessage,
    Consent,
    Json,
    Role,
    Split,
    TurnStatus,
    Vote,
    messages_hash,
)
from conversations.prompt import SpokenTurn, messages_for_model
from conversations.redaction import SecondPass
from conversations.store import Record
from distill.dataset.choosing.files import choose_from_files
from distill.dataset.choosing.topics import topics_of
from distill.dataset.handbook.articles import Handbook
from distill.dataset.second_pass import second_pass
from distill.dataset.similarity import Groups, near_duplicate_pairs, words
from distill.rows import ChosenRow, FactRow, LabelsRow, MessageRow
from distill.run import Counts, Outcome, Run, Stage
from distill.settings import DistillSettings

# A cluster that holds more of the record than this says nothing as a test; it is for training.
_LARGEST_CLUSTER_SHARE = 0.2


class Because(StrEnum):
    """Why a decision was chosen, the strongest reason first."""

    THUMBS_DOWN = "thumbs_down"
    OPEN_QUESTION = "open_question"
    RETRIED = "retried"
    FAILED = "failed"
    COVERAGE = "coverage"


class LeftOut(StrEnum):
    """Why a question was not chosen."""

    NO_CONSENT = "no_consent"
    TOO_SHORT = "too_short"
    DUPLICATE = "duplicate"
    JOINS_SPLITS = "joins_splits"
    CLUSTER_TOO_LARGE = "cluster_too_large"
    TWIN_OF_TEST = "twin_of_test"
    OVER_LIMIT = "over_limit"


@dataclass(frozen=True)
class Candidate:
    """A customer question as it may become a decision."""

    decision_id: str
    conversation: log.Conversation
    question: log.Turn
    reply: log.Turn | None
    user_turn: int
    messages: tuple[ChatMessage, ...]
    because: Because


@dataclass(frozen=True)
class Placed:
    """A candidate with its cluster and its split."""

    candidate: Candidate
    cluster_id: str
    split: Split


@dataclass(frozen=True)
class Choice:
    """What was chosen, and how many were not, by reason."""

    rows: tuple[ChosenRow, ...]
    placed: tuple[Placed, ...]
    left_out: Mapping[str, int]


def choose(run: Run) -> Outcome:
    """Choose the decisions of a run and enter them into the record.

    Raises Refused when there is none.
    """
    if run.settings.datasets is not None:
        return choose_from_files(run)
    further = second_pass(run.settings.redaction)
    choice = plan_decisions(run.record, run.settings, with_topics=True, second_pass=further)
    if not choice.rows:
        told = ", ".join(f"{count} {name}" for name, count in sorted(choice.left_out.items())) or "the record holds none"
        raise Refused(
            f"no customer question is there to be taught (left out: {told}); import conversations, and where they are yours to "
            'use but say nothing of consent, mark them "consent": true or set [choose] learn_from_unknown_consent = true'
        )
    run.report_progress(Stage.CHOOSE, 0.9)
    topics = {row.decision_id: row.topic for row in choice.rows}
    kept.put_decisions(
        run.record,
        (
            kept.Decision(
                decision_id=each.candidate.decision_id,
                conversation_id=each.candidate.conversation.conversation_id,
                question_turn_id=each.candidate.question.turn_id,
                reply_turn_id=each.candidate.reply.turn_id if each.candidate.reply else None,
                cluster_id=each.cluster_id,
                split=each.split,
                topic=topics[each.candidate.decision_id],
                history_hash=messages_hash(each.candidate.messages),
                chosen_by_run_id=run.run_id,
                chosen_because=each.candidate.because,
            )
            for each in choice.placed
        ),
    )
    run.write_rows(Stage.CHOOSE, "decisions.jsonl", choice.rows)
    splits: dict[str, Json] = dict(sorted(Counter(row.split.value for row in choice.rows).items()))
    because: dict[str, Json] = dict(sorted(Counter(row.chosen_because for row in choice.rows).items()))
    rejected = sum(choice.left_out.values())
    return Outcome(
        Counts(
            taken_in=len(choice.rows) + rejected,
            accepted=len(choice.rows),
            rejected=rejected,
            unscored=0,
            rejected_by_reason=dict(sorted(choice.left_out.items())),
        ),
        {"by_split": splits, "by_reason": because, "clusters": len({row.cluster_id for row in choice.rows})},
    )


def plan_decisions(
    record: Record, settings: DistillSettings, *, with_topics: bool, second_pass: SecondPass | None = None
) -> Choice:
    """Return what a run chooses from the record as it is now, writing nothing.

    Without topics no embedding model is loaded, and without a second pass no Presidio; a dry run has no use for either, because
    it sends nothing.
    """
    left_out: Counter[str] = Counter()
    every = list(_candidates(record, settings, second_pass))
    wanted = list(_worth_teaching(every, settings, left_out))
    placed = list(_place(record, settings, every, wanted, left_out))
    placed = _without_twins(settings, placed, left_out)
    placed = _within_limit(placed, settings.choose.max_decisions, left_out)
    placed.sort(key=lambda each: each.candidate.decision_id)
    handbook = Handbook.load(settings.handbook.path) if settings.handbook else None
    questions = [each.candidate.messages[-1].content for each in placed]
    topics = topics_of(questions, handbook) if with_topics else [""] * len(questions)
    rows = tuple(_row(each, topic, handbook) for each, topic in zip(placed, topics, strict=True))
    return Choice(rows, tuple(placed), dict(left_out))


def _candidates(record: Record, settings: DistillSettings, second_pass: SecondPass | None) -> Iterator[Candidate]:
    """Yield every customer question of the record that was the last word before an answer, or still waits for one."""
    for conversation in log.every_conversation(record):
        branch = [turn for turn in log.thread(record, conversation.conversation_id) if turn.content or turn.extra_json]
        every = log.all_turns(record, conversation.conversation_id)
        spoken = [SpokenTurn(turn.role, turn.status, turn.content, turn.extra_json) for turn in branch]
        redacted, _ = messages_for_model(
            spoken, system_prompt=settings.prompt.system, rules=settings.redaction.rules, second_pass=second_pass
        )
        heard = [turn for turn in branch if turn.status is not TurnStatus.FAILED]
        # Where the conversation brought no system prompt, the configured one stands before its first turn.
        shift = len(redacted) - len(heard)
        user_turn = -1
        for place, turn in enumerate(heard):
            user_turn += turn.role is Role.USER
            following = heard[place + 1] if place + 1 < len(heard) else None
            if turn.role is not Role.USER or (following is not None and following.role is Role.USER):
                continue
            reply = following if following is not None and following.role is Role.ASSISTANT else None
            yield Candidate(
                decision_id=f"decision_{hashlib.sha256(turn.turn_id.encode()).hexdigest()[:24]}",
                conversation=conversation,
                question=turn,
                reply=reply,
                user_turn=user_turn,
                messages=redacted[: place + shift + 1],
                because=_because(turn, reply, every),
            )


def _because(question: log.Turn, reply: log.Turn | None, every: Sequence[log.Turn]) -> Because:
    replies = [turn for turn in every if turn.parent_turn_id == question.turn_id and turn.author is Author.STUDENT]
    if any(turn.vote is Vote.DOWN for turn in (*replies, *([reply] if reply else []))):
        return Because.THUMBS_DOWN
    if any(turn.status is TurnStatus.FAILED for turn in replies):
        return Because.FAILED
    if reply is None:
        return Because.OPEN_QUESTION
    return Because.RETRIED if len(replies) > 1 else Because.COVERAGE


def _worth_teaching(every: Sequence[Candidate], settings: DistillSettings, left_out: Counter[str]) -> Iterator[Candidate]:
    allowed = {Consent.YES, Consent.UNKNOWN} if settings.choose.learn_from_unknown_consent else {Consent.YES}
    seen: set[str] = set()
    for candidate in every:
        asked = messages_hash(candidate.messages)
        if candidate.conversation.consent not in allowed:
            left_out[LeftOut.NO_CONSENT] += 1
        elif len(words(candidate.question.content)) < settings.choose.min_question_words:
            left_out[LeftOut.TOO_SHORT] += 1
        elif asked in seen:
            left_out[LeftOut.DUPLICATE] += 1
        else:
            seen.add(asked)
            yield candidate


def _place(
    record: Record,
    settings: DistillSettings,
    every: Sequence[Candidate],
    wanted: Sequence[Candidate],
    left_out: Counter[str],
) -> Iterator[Placed]:
    """Give each wanted candidate its cluster and split, or leave it out."""
    known = {decision.decision_id: decision for decision in kept.decisions(record)}
    salt = settings.choose.split_salt or record.fact("split_salt")
    for cluster in _clusters(every, settings.choose.near_duplicate_jaccard):
        members = set(cluster)
        decided = [known[name] for name in cluster if name in known]
        splits = {decision.split for decision in decided}
        new = [candidate for candidate in wanted if candidate.decision_id in members and candidate.decision_id not in known]
        for candidate in wanted:
            if candidate.decision_id in members and candidate.decision_id in known:
                decision = known[candidate.decision_id]
                yield Placed(candidate, decision.cluster_id, decision.split)
        if len(splits) > 1:
            left_out[LeftOut.JOINS_SPLITS] += len(new)
            continue
        is_large = len(cluster) > max(20, _LARGEST_CLUSTER_SHARE * len(every))
        if is_large and Split.TEST in splits:
            left_out[LeftOut.CLUSTER_TOO_LARGE] += len(new)
            continue
        cluster_id = (
            decided[0].cluster_id if decided else f"cluster_{hashlib.sha256(min(cluster).encode()).hexdigest()[:16]}"
        )
        split = decided[0].split if decided else Split.TRAIN if is_large else _split_of(cluster_id, salt, settings)
        for candidate in new:
            yield Placed(candidate, cluster_id, split)


def _clusters(every: Sequence[Candidate], threshold: float) -> list[list[str]]:
    """Return the decisions of the whole record in clusters: twins, conversations and customers together."""
    groups: Groups[str] = Groups(candidate.decision_id for candidate in every)
    first_of: dict[str, str] = {}
    for candidate in every:
        for name in (candidate.conversation.conversation_id, f"customer {candidate.conversation.customer_id}"):
            groups.join(candidate.decision_id, first_of.setdefault(name, candidate.decision_id))
    texts = {candidate.decision_id: candidate.messages[-1].content for candidate in every}
    for one, other in near_duplicate_pairs(texts, threshold):
        groups.join(one, other)
    return groups.members()


def _split_of(cluster_id: str, salt: str, settings: DistillSettings) -> Split:
    """Return the split of a new cluster: its salted hash as a number from 0 to 1, against the shares."""
    place = int(hashlib.sha256(f"{salt} {cluster_id}".encode()).hexdigest()[:13], 16) / 16**13
    if place < settings.choose.test_share:
        return Split.TEST
    if place < settings.choose.test_share + settings.choose.validation_share:
        return Split.VALIDATION
    return Split.TRAIN


def _without_twins(settings: DistillSettings, placed: Sequence[Placed], left_out: Counter[str]) -> list[Placed]:
    """Leave out what would be learnt and is the near-duplicate of a test question.

    Clusters keep such twins together; what is left are rows whose clusters were decided before they met.
    """
    texts = {each.candidate.decision_id: each.candidate.messages[-1].content for each in placed}
    split_of = {each.candidate.decision_id: each.split for each in placed}
    twins: set[str] = set()
    for pair in near_duplicate_pairs(texts, settings.choose.near_duplicate_jaccard):
        if {split_of[name] for name in pair} > {Split.TEST}:
            twins |= {name for name in pair if split_of[name] is not Split.TEST}
    left_out[LeftOut.TWIN_OF_TEST] += len(twins)
    if not twins:
        del left_out[LeftOut.TWIN_OF_TEST]
    return [each for each in placed if each.candidate.decision_id not in twins]


def _within_limit(placed: Sequence[Placed], limit: int, left_out: Counter[str]) -> list[Placed]:
    """Keep the strongest reasons first, and among equals by the decision's name, which is a hash."""
    order = list(Because)
    ranked = sorted(placed, key=lambda each: (order.index(each.candidate.because), each.candidate.decision_id))
    if len(ranked) > limit:
        left_out[LeftOut.OVER_LIMIT] += len(ranked) - limit
    return ranked[:limit]


def _row(placed: Placed, topic: str, handbook: Handbook | None) -> ChosenRow:
    candidate = placed.candidate
    return ChosenRow(
        decision_id=candidate.decision_id,
        conversation_id=candidate.conversation.conversation_id,
        cluster_id=placed.cluster_id,
        topic=topic,
        split=placed.split,
        chosen_because=candidate.because,
        labels=_labels(candidate, handbook),
        messages=tuple(MessageRow.of(message) for message in candidate.messages),
    )


def _labels(candidate: Candidate, handbook: Handbook | None) -> LabelsRow:
    """Return what a person wrote down about this question; facts that the customer has said are not expected."""
    noted = candidate.conversation.labels.get("turns")
    for each in noted if isinstance(noted, list) else []:
        if not isinstance(each, dict) or each.get("user_turn") != candidate.user_turn:
            continue
        articles, facts, answerable = each.get("articles"), each.get("facts"), each.get("answerable")
        known = handbook.facts if handbook else {}
        named = [known[str(name)] for name in (facts if isinstance(facts, list) else []) if str(name) in known]
        asked = "\n".join(message.content for message in candidate.messages if message.role is Role.USER)
        return LabelsRow(
            answerable=answerable if isinstance(answerable, bool) else None,
            articles=tuple(str(name) for name in (articles if isinstance(articles, list) else [])),
            facts=tuple(fact for fact in named if not _says(asked, fact)),
        )
    return LabelsRow()


def _says(text: str, fact: FactRow) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in fact.match)
