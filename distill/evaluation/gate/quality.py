"""The gate's checks of quality: beside the release in service, topic by topic, and beside the teacher.

In: the evidence. Out: one check each. A point estimate beyond a bound fails; one within it passes only where its interval does.
"""

from collections import defaultdict
from collections.abc import Mapping

from distill.evaluation.figures.intervals import Estimate
from distill.evaluation.gate.careful import difference_interval, plain_difference_interval, share_interval
from distill.evaluation.gate.evidence import Evidence, Pair, Pairs
from distill.evaluation.gate.verdict import Check, failed, no_score, passed, unclear

RELEASED, TOPICS, RETAINED = "loss_to_released", "topics", "retained"
# Two conversations that happen to agree would make anything sure.
_MIN_TOPIC_CONVERSATIONS = 3


def check_released(evidence: Evidence) -> Check | None:
    """Hold the candidate against the release in service: the lower bound of the difference. None where nothing is in service."""
    if evidence.in_service is None:
        return None
    pairs, problem = _pairs_with_released(evidence)
    if pairs is None:
        return unclear(RELEASED, problem)
    bound = evidence.bounds.max_loss_to_released
    found = difference_interval(pairs.pairs)
    if found is None or found.low is None or found.high is None:
        return unclear(RELEASED, "the difference to the release in service could not be measured")
    told = (
        f"differs from the release in service by {found.value:+z.1%} ({found.low:+z.1%} to {found.high:+z.1%}, n={found.n}"
        f"{_failed_note(pairs)}); the lower bound may be {-bound:+z.1%} at least"
    )
    if found.n < evidence.bounds.min_decisions:
        return unclear(RELEASED, _too_few(told, evidence), found.value, -bound)
    if found.value < -bound:
        return failed(RELEASED, told, found.value, -bound)
    return (passed if found.low >= -bound else unclear)(RELEASED, told, found.value, -bound)


def check_topics(evidence: Evidence) -> Check | None:
    """Look for a topic that is much worse than in the release in service. None where nothing is in service.

    A topic fails where even its upper bound lies beyond the bound, and leaves the gate unsure where its value lies beyond it and the
    topic is surely worse than it was.
    """
    if evidence.in_service is None:
        return None
    pairs, problem = _pairs_with_released(evidence)
    if pairs is None:
        return unclear(TOPICS, problem)
    bound = evidence.bounds.max_topic_loss
    measured, small = _by_topic(evidence, pairs)
    unseen = (
        f"; {small} {'topic has' if small == 1 else 'topics have'} too few decisions to be looked at alone" if small else ""
    )
    if len(pairs.pairs) < evidence.bounds.min_decisions:
        return unclear(TOPICS, _too_few(f"{len(measured)} topics were looked at, n={len(pairs.pairs)}", evidence))
    if not measured:
        return unclear(
            TOPICS,
            f"no topic has {evidence.bounds.min_topic_decisions} decisions in {_MIN_TOPIC_CONVERSATIONS} conversations to be looked "
            "at alone; measure more decisions, or lower [promote] min_topic_decisions",
        )
    worst = min(measured, key=lambda topic: measured[topic].value)
    sure = [topic for topic, found in measured.items() if found.high is not None and found.high < -bound]
    unsure = [topic for topic, found in measured.items() if found.value < -bound and (found.high or 0.0) < 0]
    for topics, outcome in ((sure, failed), (unsure, unclear)):
        if topics:
            told = ", ".join(_told_topic(topic, measured[topic]) for topic in sorted(topics))
            value = min(measured[topic].value for topic in topics)
            return outcome(
                TOPICS, f"is worse than the release in service in {told}; it may be {-bound:+z.0%}{unseen}", value, -bound
            )
    told = f"is worst beside the release in service in {_told_topic(worst, measured[worst])}, of {len(measured)} topics"
    return passed(TOPICS, f"{told}; none may surely be worse than {-bound:+z.0%}{unseen}", measured[worst].value, -bound)


def check_retained(evidence: Evidence) -> Check | None:
    """Hold the share of the teacher's quality that is kept against its floor: its lower bound. A floor of 0 bounds nothing."""
    floor = evidence.bounds.min_retained
    if floor == 0:
        return None
    pairs = evidence.pairs_with("teacher", evidence.quality_metric)
    found = share_interval(pairs.pairs)
    if found is None or found.low is None or found.high is None or pairs.unscored:
        missing = no_score(pairs.unscored) if pairs.unscored else "could not be measured"
        return unclear(RETAINED, f"the share of the teacher's {evidence.quality_metric} that is kept: {missing}")
    told = (
        f"keeps {found.value:.1%} of the teacher's {evidence.quality_metric} ({found.low:.1%} to {found.high:.1%}, n={found.n}"
        f"{_failed_note(pairs)}); the floor for the lower bound is {floor:.0%}"
    )
    if found.n < evidence.bounds.min_decisions:
        return unclear(RETAINED, _too_few(told, evidence), found.value, floor)
    if found.value < floor:
        return failed(RETAINED, told, found.value, floor)
    return (passed if found.low >= floor else unclear)(RETAINED, told, found.value, floor)


def _pairs_with_released(evidence: Evidence) -> tuple[Pairs | None, str]:
    """Return the pairs with the release that is in service now, or why there are none."""
    model = evidence.released_model()
    if model is None:
        return None, (
            f"the release in service is {evidence.in_service!r} now, and the candidate was not measured beside it; "
            "measure again in a new run"
        )
    pairs = evidence.pairs_with(model, evidence.quality_metric)
    if pairs.unscored:
        return None, f"the difference to the release in service: of the candidate's, {no_score(pairs.unscored)}"
    return pairs, ""


def _by_topic(evidence: Evidence, pairs: Pairs) -> tuple[Mapping[str, Estimate], int]:
    """Return how each topic with enough decisions differs, and how many topics have too few."""
    of_topic: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs.pairs:
        models = evidence.by_decision[pair[0].decision_id]
        of_topic[next(iter(models.values())).topic].append(pair)
    measured: dict[str, Estimate] = {}
    for topic, each in of_topic.items():
        conversations = {one.conversation_id for one, _ in each}
        if len(each) >= evidence.bounds.min_topic_decisions and len(conversations) >= _MIN_TOPIC_CONVERSATIONS:
            found = plain_difference_interval(each)
            assert found is not None
            measured[topic] = found
    return measured, len(of_topic) - len(measured)


def _told_topic(topic: str, found: Estimate) -> str:
    interval = f"{found.low:+z.0%} to {found.high:+z.0%}, " if found.low is not None and found.high is not None else ""
    return f"{topic or 'no topic'} by {found.value:+z.0%} ({interval}n={found.n})"


def _failed_note(pairs: Pairs) -> str:
    return f", of which {pairs.failed} gave no answer and count as 0" if pairs.failed else ""


def _too_few(told: str, evidence: Evidence) -> str:
    return f"{told}; {evidence.bounds.min_decisions} decisions are needed"
