"""Replay: what earlier runs taught and this one does not, ready to be learnt again so that it is not forgotten.

In: the record, what this run teaches, and what training must not know of the test set. Out: `assemble/replay.jsonl`, the same
byte for byte however often it is made, and how many decisions stay out for which reason. The messages are made anew, as `choose`
makes them, so that a row follows today's redaction and system prompt. It asks nobody: an answer is replayed as it was accepted, or
as people put it since. Data sets of files are left alone: they teach a task of their own.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from conversations.decisions import Answer, AnswerAuthor, Decision, decisions
from conversations.messages import Json, Role, Split
from conversations.passages import replayable
from conversations.taught import taught_before
from distill.dataset.assembling.leaks import HeldOut
from distill.dataset.assembling.rows import Sources, row_with, write_lines
from distill.dataset.choosing.files import BECAUSE as FROM_FILES
from distill.dataset.choosing.rows import Wanted, chosen_rows
from distill.dataset.choosing.signals import Signal
from distill.dataset.handbook.articles import Handbook
from distill.dataset.second_pass import second_pass
from distill.dataset.teaching.people import PeoplesAnswers, licence_of_answer
from distill.rows import ChosenRow, DatasetRow, MessageRow
from distill.run import Stage

FILE = "replay.jsonl"
NO_STANDING_ANSWER = "replay_without_answer"
NO_LICENCE = "replay_without_licence"
WITHDRAWN = "consent_withdrawn"
GONE = "gone"


@dataclass
class Replay:
    """What may be replayed: `considered` decisions and sentences of the handbook = rows written + those left out, by reason."""

    considered: int = 0
    studied: int = 0
    decision_ids: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """How many rows were written."""
        return len(self.decision_ids) + self.studied

    def figures(self) -> dict[str, Json]:
        """Return the counts as manifests and cards hold them."""
        return {
            "rows": self.rows,
            "considered": self.considered,
            "of_the_handbook": self.studied,
            "left_out": dict(sorted(self.left_out.items())),
            "topics": dict(sorted(self.topics.items())),
        }


def write_replay(
    sources: Sources,
    handbook: Handbook | None,
    held_out: HeldOut,
    *,
    studied: Sequence[DatasetRow],
    taught_now: Collection[str],
    withdrawn: Collection[str],
) -> Replay:
    """Write `replay.jsonl` and return what became of each decision that was taught before.

    `studied` are the handbook's own rows that were, `taught_now` the decisions of this run's own sets, `withdrawn` the
    conversations that must not be learnt from.
    """
    replay = Replay()
    earlier = _earlier(sources, taught_now)
    wanted = [_wanted(each) for each in earlier if each.conversation_id not in withdrawn]
    replay.considered = len(earlier) + len(studied)
    _leave_out(replay, WITHDRAWN, len(earlier) - len(wanted))
    folder = sources.run.stage_folder(Stage.ASSEMBLE)
    write_lines(folder / FILE, chain(_lines(sources, handbook, held_out, wanted, replay), _studied(studied, replay)))
    return replay


def _earlier(sources: Sources, taught_now: Collection[str]) -> list[Decision]:
    """Return the decisions that earlier runs taught and this one does not, in one order."""
    run = sources.run
    if run.settings.datasets is not None:
        return []
    taught = taught_before(run.record, run.run_id) - {*taught_now}
    found = [
        each
        for each in decisions(run.record)
        if each.decision_id in taught and each.split is Split.TRAIN and each.chosen_because != FROM_FILES
    ]
    return sorted(found, key=lambda each: (each.conversation_id, each.decision_id))


def _lines(
    sources: Sources, handbook: Handbook | None, held_out: HeldOut, wanted: Sequence[Wanted], replay: Replay
) -> Iterator[str]:
    settings = sources.run.settings
    ours = frozenset({settings.prompt.system})
    standing = _Standing(sources, handbook, {each.decision_id for each in wanted})
    made = 0
    for row in chosen_rows(sources.run.record, settings, wanted, second_pass(settings.redaction)):
        made += 1
        learnt = standing.row(row)
        reason = learnt if isinstance(learnt, str) else held_out.reason_against(row, ours)
        if isinstance(learnt, str) or reason is not None:
            _leave_out(replay, str(reason))
            continue
        replay.decision_ids.append(learnt.decision_id)
        replay.topics[learnt.topic or "none"] += 1
        yield learnt.model_dump_json()
    _leave_out(replay, GONE, len(wanted) - made)


def _studied(rows: Sequence[DatasetRow], replay: Replay) -> Iterator[str]:
    for row in rows:
        replay.studied += 1
        replay.topics[row.topic or "none"] += 1
        yield row.model_dump_json()


def _leave_out(replay: Replay, reason: str, count: int = 1) -> None:
    if count:
        replay.left_out[reason] += count


class _Standing:
    """The answers of some decisions that may be learnt again."""

    def __init__(self, sources: Sources, handbook: Handbook | None, wanted: Collection[str]) -> None:
        self._sources = sources
        self._person_weight = sources.run.settings.choose.person_weight
        self._people = PeoplesAnswers(sources.run.record, sources.run.settings)
        self._answers: dict[str, list[Answer]] = {}
        for answer in replayable(sources.run.record, handbook.passages.keys() if handbook else ()):
            if answer.decision_id in wanted and answer.author is not AnswerAuthor.STUDENT:
                self._answers.setdefault(answer.decision_id, []).append(answer)

    def row(self, row: ChosenRow) -> DatasetRow | str:
        """Return the row to replay, or why there is none. People's words go before a teacher's, the newest first.

        What people said and verify has not accepted yet is not learnt, and nor is what it was said against.
        """
        answers = self._answers.get(row.decision_id, [])
        given = self._people.given(row)
        if given is not None:
            accepted = [each for each in answers if given.answer_id == each.answer_id]
            if not given.answer_id:
                accepted = [each for each in answers if (each.author, each.content) == (given.author, given.text)]
            text, extra_json = given.text, given.extra_json
        else:
            accepted = sorted(answers, key=lambda each: (each.answered_at_utc, each.answer_id))
            text, extra_json = (accepted[-1].content, accepted[-1].extra_json) if accepted else ("", "")
        if not accepted:
            return NO_STANDING_ANSWER
        answer = accepted[-1]
        licence = licence_of_answer(answer, self._sources.run.settings)
        if licence is None:
            return NO_LICENCE
        return row_with(
            row,
            MessageRow(role=Role.ASSISTANT, content=text, extra_json=extra_json),
            teacher=answer.author_name if given is None else given.teacher,
            weight=self._person_weight if given else self._sources.weight(row, answer.author, answer.answer_id),
            answer_id=answer.answer_id,
            passages=answer.passages,
            licence=licence,
        )


def _wanted(decision: Decision) -> Wanted:
    return Wanted(
        decision_id=decision.decision_id,
        conversation_id=decision.conversation_id,
        question_turn_id=decision.question_turn_id,
        cluster_id=decision.cluster_id,
        topic=decision.topic,
        split=decision.split,
        signals=(Signal(decision.chosen_because),),
    )
