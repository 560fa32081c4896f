"""Selection: which of the placed questions are taught, so that the set is diverse and within its limit.

In: candidates with their signals, twins and topics. Out: those that are chosen; of the others, why not. The strongest signal goes
first and equals go by the hash that their name is, so that the same record gives the same choice.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from conversations.decisions import Decision
from conversations.messages import Split
from distill.dataset.choosing.candidates import Candidate
from distill.dataset.choosing.clusters import Clusters, LeftOut, Placed
from distill.dataset.choosing.signals import OF_PEOPLE, STRENGTH, Signal
from distill.settings import ChooseTable

# What a person said of a question is not lost because the same was asked and decided before.
_SAID_BY_PEOPLE = OF_PEOPLE | {Signal.THUMBS_DOWN}


def worth_teaching(
    every: Iterable[Candidate], known: Mapping[str, Decision], table: ChooseTable, left_out: dict[str, LeftOut]
) -> list[Candidate]:
    """Return what may be learnt, is long enough, and was not asked alike on the same history.

    Of equals a test question goes first, then what people answered or did not like, then a decided question, then the strongest.
    """
    wanted: list[Candidate] = []
    for candidate in every:
        if not candidate.may_be_learnt:
            left_out[candidate.decision_id] = LeftOut.NO_CONSENT
        elif candidate.word_count < table.min_question_words:
            left_out[candidate.decision_id] = LeftOut.TOO_SHORT
        elif candidate.messages > table.max_history_messages:
            left_out[candidate.decision_id] = LeftOut.HISTORY_TOO_LONG
        else:
            wanted.append(candidate)
    tested = {name for name, decision in known.items() if decision.split is Split.TEST}

    def told_by_people(candidate: Candidate) -> int:
        return STRENGTH[candidate.signals[0]] if candidate.signals[0] in _SAID_BY_PEOPLE else len(STRENGTH)

    def order(candidate: Candidate) -> tuple[bool, int, bool, int]:
        name = candidate.decision_id
        return name not in tested, told_by_people(candidate), name not in known, STRENGTH[candidate.signals[0]]

    kept: dict[bytes, Candidate] = {}
    # Of equals the first in the record stays: `sorted` keeps their order.
    for candidate in sorted(wanted, key=order):
        first = kept.setdefault(candidate.history_digest, candidate)
        gives_way = first.decision_id not in tested and told_by_people(first) < told_by_people(candidate)
        if (
            first is not candidate
            and candidate.decision_id not in tested
            and (candidate.decision_id not in known or gives_way)
        ):
            left_out[candidate.decision_id] = LeftOut.DUPLICATE
    return [candidate for candidate in wanted if candidate.decision_id not in left_out]


def without_further_twins(
    placed: Sequence[Placed], known: Collection[str], clusters: Clusters, max_twins: int, left_out: dict[str, LeftOut]
) -> list[Placed]:
    """Keep the strongest of each group of twins that would be learnt; decisions of earlier runs stay, and count."""
    taught = [name for name, reason in left_out.items() if reason is LeftOut.TAUGHT_BEFORE]
    learnt = Counter(clusters.twin_group(name) for name in taught)
    for each in sorted(placed, key=lambda each: (each.name not in known, strength(each))):
        if each.split is Split.TEST:
            continue
        group = clusters.twin_group(each.name)
        learnt[group] += 1
        if learnt[group] > max_twins and each.name not in known:
            left_out[each.name] = LeftOut.NEAR_DUPLICATE
    return [each for each in placed if each.name not in left_out]


def within_limit(
    placed: Sequence[Placed],
    table: ChooseTable,
    limit: int,
    topics: Mapping[str, str],
    left_out: dict[str, LeftOut],
    tested: Collection[str] = frozenset(),
) -> list[Placed]:
    """Keep as many as the limit allows: what is tested already, the strongest, a quota of ordinary cases, of each topic a share.

    A topic has more than its share only where no other question is left for the place. Without topics (a dry run has none) only
    the limit and the quota hold.
    """
    if len(placed) <= limit:
        return list(placed)
    ranked = sorted((each for each in placed if each.name not in tested), key=strength)
    ordinary = [each for each in ranked if each.candidate.signals[0] is Signal.COVERAGE]
    telling = [each for each in ranked if each.candidate.signals[0] is not Signal.COVERAGE]
    free = max(0, limit - sum(each.name in tested for each in placed))
    quota = min(len(ordinary), round(table.ordinary_share * free))
    # What its topic has no room for comes last and is told apart.
    most = _most_of_a_topic(table, limit)
    of_topic: Counter[str] = Counter()
    kept = sorted((each for each in placed if each.name in tested), key=strength)[:limit]
    of_topic.update(topics.get(each.name, "") for each in kept)
    names = {each.name for each in kept}
    left_out.update((each.name, LeftOut.OVER_LIMIT) for each in placed if each.name in tested and each.name not in names)

    def take(some: Sequence[Placed], up_to: int) -> list[Placed]:
        passed_over: list[Placed] = []
        for each in some:
            topic = topics.get(each.name, "")
            if topic and of_topic[topic] >= most:
                left_out[each.name] = LeftOut.TOPIC_FULL
            elif len(kept) >= up_to:
                passed_over.append(each)
            else:
                of_topic[topic] += 1
                kept.append(each)
        return passed_over

    waiting = take(telling, limit - quota)
    over = [*take(ordinary, limit), *take(waiting, limit)]
    left_out.update((each.name, LeftOut.OVER_LIMIT) for each in over)
    for each in [each for each in ranked if left_out.get(each.name) is LeftOut.TOPIC_FULL][: limit - len(kept)]:
        del left_out[each.name]
        kept.append(each)
    return kept


def fills(placed: Sequence[Placed], table: ChooseTable, limit: int, topics: Mapping[str, str]) -> bool:
    """Tell whether there are enough questions for the limit without giving a topic more than its share."""
    counts = Counter(topics.get(each.name, "") for each in placed)
    most = _most_of_a_topic(table, limit)
    return sum(min(count, most) if topic else count for topic, count in counts.items()) >= limit


def _most_of_a_topic(table: ChooseTable, limit: int) -> int:
    return max(1, int(table.max_topic_share * limit))


def strength(placed: Placed) -> tuple[int, int, str]:
    """Return what orders decisions: the strongest signal, how many more there are, and a hash."""
    signals = placed.candidate.signals
    return STRENGTH[signals[0]], -len(signals), placed.name
