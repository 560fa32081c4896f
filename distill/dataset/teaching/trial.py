"""The trial: a teacher's first decisions, few and of different conversations, before it is paid for the rest.

In: chosen rows and how each was answered. Out: nothing, or the reason for which the run stops. It takes as many calls at most
as it has decisions, whatever the teacher does.
"""

from collections import Counter, deque
from collections.abc import Sequence

from conversations.errors import OutsideError, Refused
from distill.dataset.teaching.asking import Asker
from distill.dataset.teaching.replies import Fault, Reply
from distill.dataset.verifying.refusals import refusal_in
from distill.rows import ChosenRow

# How many of its last answers a teacher is judged by while it works.
GUARDED_ANSWERS = 50


def what_is_bad(reply: Reply) -> str:
    """Return what makes an answer useless, for the trial and the guard; empty where nothing does. `verify` looks closer."""
    if reply.truncated:
        return "truncated"
    if reply.is_empty:
        return "empty"
    if reply.finish_reason == "content_filter":
        return "filtered"
    if Fault.TOOL_CALLS_UNASKED in reply.faults:
        return "tool_calls_unasked"
    return "refused" if refusal_in(reply.text) else ""


def trial_rows(rows: Sequence[ChosenRow], count: int) -> list[ChosenRow]:
    """Return the first decisions of as many conversations as there are, then the second ones, up to `count`."""
    asked: Counter[str] = Counter()
    ranked: list[tuple[int, int]] = []
    # A conversation's first question comes before its second, in the trial too.
    for place in sorted(range(len(rows)), key=lambda place: (rows[place].turn_depth, len(rows[place].messages), place)):
        ranked.append((asked[rows[place].conversation_id], place))
        asked[rows[place].conversation_id] += 1
    return [rows[place] for _, place in sorted(ranked)[:count]]


class Trial:
    """Counts a teacher's first calls and what came of them."""

    def __init__(self, asker: Asker, *, decisions: int, max_failures: int) -> None:
        self._asker, self._calls_left, self._max_failures = asker, decisions, max_failures
        self._good = 0
        self._is_capped = False
        self._bad: Counter[str] = Counter()

    def may_call(self) -> bool:
        """Take one of the calls that are left, if there is one."""
        self._calls_left -= 1
        return self._calls_left >= 0

    @property
    def is_over(self) -> bool:
        """Tell whether no call is left."""
        return self._calls_left <= 0

    def answered(self, reply: Reply) -> None:
        """Note an answer.

        Raises Refused when too many are useless.
        """
        bad = what_is_bad(reply)
        if bad:
            self._note(bad)
        else:
            self._good += 1

    def refused(self) -> None:
        """Note a request that the teacher refused.

        Raises Refused when there are too many.
        """
        self._note("request_refused")

    def unanswered(self) -> None:
        """Note a decision without an answer.

        Raises OutsideError when there are too many.
        """
        if not self.is_over:
            self._bad["no_answer"] += 1
        if self._bad["no_answer"] > self._max_failures:
            raise self._away()

    def capped(self) -> None:
        """Note a decision for which there is no money: that says nothing about the teacher."""
        self._is_capped = True

    def end(self) -> None:
        """Look at the whole trial.

        Raises OutsideError when the calls are used up and nothing was answered.
        """
        if self.is_over and not self._is_capped and self._good + sum(self._bad.values()) == 0:
            raise self._away()

    def _away(self) -> OutsideError:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self._asker.faults.items()))
        return OutsideError(
            f"the teacher {self._asker.name!r} at {self._asker.table.base_url} does not answer ({faults or 'no answer'} in "
            f"{self._asker.calls} calls); run again later: what was answered is kept"
        )

    def _note(self, what: str) -> None:
        self._bad[what] += 1
        total = sum(self._bad.values())
        if total > self._max_failures:
            told = ", ".join(f"{count} {name}" for name, count in sorted(self._bad.items()))
            raise Refused(
                f"the trial of the teacher {self._asker.name!r} failed: {told} among its first {total + self._good} answers, "
                f"{self._max_failures} allowed; nothing more was asked: mend its table ([teachers] max_answer_tokens, model) or "
                "name another in [teach]"
            )


class Guard:
    """Looks on while a teacher works: one that has turned bad, or a bad fallback that had no trial, is paid for no more.

    Half of its answers may be bad, for a fallback gets what others could not answer. The run stops, rather than go on without
    it, so that what is written does not depend on who answered first.
    """

    def __init__(self, name: str, *, first: int, max_failures: int) -> None:
        """`first` is how many answers a teacher without a trial is judged by at the beginning; 0 for one that had its trial."""
        self._name, self._first, self._max_failures = name, first, max_failures
        self._last: deque[str] = deque(maxlen=GUARDED_ANSWERS)
        self._seen = 0

    def note(self, bad: str) -> None:
        """Note an answer, and what is bad about it (empty: nothing).

        Raises Refused when too many are.
        """
        self._last.append(bad)
        self._seen += 1
        # The limit of the trial loosens this one too: it is the way out for who wants such answers.
        window = self._first if self._seen <= self._first else GUARDED_ANSWERS
        found = Counter(filter(None, self._last))
        if found.total() > max(window // 2, self._max_failures):
            told = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
            raise Refused(
                f"the teacher {self._name!r} is stopped: {told} among its last {len(self._last)} answers; what was answered is kept: "
                "mend its table ([teachers] max_answer_tokens, model), name another in [teach], or raise max_smoke_failures"
            )
