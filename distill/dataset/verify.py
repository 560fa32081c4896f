"""Verify: which answers may be learnt, by rules that always say the same of the same answer, by the judge, and by operators.

In: `choose/decisions.jsonl` and `teach/answers.jsonl`. Out: a verdict with its reason for every chosen decision, on the answers in
the record and in `verify/verdicts.jsonl`, where nobody stands who was erased meanwhile. What operators wrote or reviewed stands
above every rule but those that protect people and the product. Held-out decisions get a verdict like the others, but it filters
nothing there. It calls the judge, where one is set, and nobody else. What could not be said is unscored, never accepted.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from conversations import passages, reviews
from conversations.decisions import AnswerAuthor, Verdict, give_verdict
from conversations.editions import newest_edition
from conversations.messages import Author, Json, Split
from conversations.reviews import Review, ReviewVerdict
from conversations.tombstones import erased_among
from distill.dataset.handbook.articles import Handbook
from distill.dataset.handbook.changes import retired_facts
from distill.dataset.judge import Comparison, Judge, Preference, open_judge
from distill.dataset.second_pass import second_pass
from distill.dataset.similarity import load_embedder, words
from distill.dataset.verifying.across import Given, copies_of_other_topics, declined_surplus
from distill.dataset.verifying.checks import accepted_as, never_learnt, reason_against
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.grounding import fits, unsupported_sentence
from distill.dataset.verifying.knowledge import Shelf
from distill.dataset.verifying.reasons import AcceptedAs, Against, CannotSay, Unsaid
from distill.dataset.verifying.tasks import NLI_LABELS, label_of
from distill.rows import AnswerRow, ChosenRow, DatasetRow, Task, VerdictRow, read_rows
from distill.run import Counts, Outcome, Run, Stage

_PROGRESS_EVERY = 50


@dataclass(frozen=True)
class _Case:
    """A chosen decision with its answer, an operator's word on it, and what it is held against."""

    evidence: Evidence
    review: Review | None
    gone_passage: str

    @property
    def row(self) -> ChosenRow:
        return self.evidence.row

    @property
    def answer(self) -> AnswerRow:
        return self.evidence.answer


def verify(run: Run) -> Outcome:
    """Give every chosen decision's answer a verdict.

    Raises OperatorError for a judge that the settings name wrongly.
    """
    rows = list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))
    answers = {each.decision_id: each for each in read_rows(run.stage_folder(Stage.TEACH) / "answers.jsonl", AnswerRow)}
    handbook = Handbook.load(run.settings.handbook.path) if run.settings.handbook else None
    shelf = Shelf(handbook) if handbook else None
    cases = _cases(run, rows, answers, shelf)
    verdicts: dict[str, VerdictRow] = {}
    for place, row in enumerate(rows):
        case = cases.get(row.decision_id)
        verdicts[row.decision_id] = _by_rules(case, shelf) if case else _no_answer(row)
        if place % _PROGRESS_EVERY == 0:
            run.report_progress(Stage.VERIFY, 0.8 * place / len(rows))
    _reject(verdicts, _copies(run, cases, verdicts, shelf), Against.NEAR_COPY_OF_OTHER_TOPIC)
    judged = asyncio.run(_by_judge(run, cases, verdicts))
    _reject(verdicts, _surplus(run, rows, verdicts), Against.DECLINED_SURPLUS)
    erased = erased_among(run.record, {row.conversation_id for row in rows})
    for row in rows:
        if row.conversation_id in erased:
            verdicts[row.decision_id] = _erased(row)
    ordered = [verdicts[row.decision_id] for row in rows]
    give_verdict(run.record, {each.answer_id: (each.verdict, each.reason) for each in ordered if each.answer_id})
    retired = passages.retire(run.record, handbook.passages.keys(), Against.PASSAGE_CHANGED) if handbook else 0
    # Of who was erased meanwhile a number is left, and no row.
    run.write_rows(Stage.VERIFY, "verdicts.jsonl", [each for each in ordered if each.reason != Against.ERASED])
    details = {**_details(rows, ordered), "answers_retired": retired, "retired_facts": _retired_facts(run, handbook)}
    return Outcome(_counts(ordered), {**details, "judge": judged} if judged else details)


def _cases(run: Run, rows: Sequence[ChosenRow], answers: Mapping[str, AnswerRow], shelf: Shelf | None) -> dict[str, _Case]:
    reviewed = reviews.newest(run.record)
    further = second_pass(run.settings.redaction)
    nli = {label_of(row.labels.reference) for row in rows if row.task is Task.NLI and row.labels.reference}
    own_words = f"{run.settings.prompt.system}\n{run.settings.teach.instruction}"
    found: dict[str, _Case] = {}
    for row in rows:
        answer = answers.get(row.decision_id)
        if answer is None:
            continue
        allowed = shelf.known(answer.passages) if shelf else None
        labels = frozenset(nli) or NLI_LABELS
        evidence = Evidence(
            row, answer, allowed, run.settings.verify, run.settings.redaction.rules, further, labels, own_words
        )
        gone = shelf.gone(answer.passages) if shelf else ""
        found[row.decision_id] = _Case(evidence, reviewed.get(answer.answer_id), gone)
    return found


def _by_rules(case: _Case, shelf: Shelf | None) -> VerdictRow:
    """Return what operators and rules say of one answer."""
    # What the checks work out of a conversation is worked out on a copy, so that it does not stay in memory for every row.
    case = replace(case, evidence=replace(case.evidence))
    by_operator = _by_operator(case)
    if by_operator:
        return by_operator
    if case.gone_passage:
        detail = f"the handbook has no longer what the answer rests on ({case.gone_passage})"
        return _verdict(case, Verdict.REJECTED, Against.PASSAGE_CHANGED, detail)
    try:
        reason, detail = reason_against(case.evidence)
    except CannotSay as unsaid:
        return _verdict(case, Verdict.UNSCORED, unsaid.reason, unsaid.detail)
    if not reason and shelf and case.evidence.table.grounding == "sentences":
        loose = _loose_sentence(case, shelf)
        if loose:
            reason, detail = Against.UNSUPPORTED_BY_HANDBOOK, loose[:200]
    if reason:
        return _verdict(case, Verdict.REJECTED, reason, detail)
    return _verdict(case, Verdict.ACCEPTED, accepted_as(case.evidence))


def _by_operator(case: _Case) -> VerdictRow | None:
    """Return the verdict that an operator's word makes, or None where none has spoken.

    What would break the product or show somebody's data is not learnt even so: it is left unscored, for the operator to mend.
    """
    review = case.review
    if review and review.verdict is ReviewVerdict.REJECTED:
        return _verdict(case, Verdict.REJECTED, Against.REJECTED_BY_OPERATOR, review.note, by="operator")
    wrote = case.answer.author is AnswerAuthor.OPERATOR
    if not wrote and not review:
        return None
    reason, found = never_learnt(case.evidence)
    if reason:
        detail = f"{found[:120]!r} cannot be learnt although an operator stands for it; write the answer without it"
        return _verdict(case, Verdict.UNSCORED, reason, detail, by="operator")
    if case.gone_passage and not wrote:
        detail = "approved before the handbook changed; write the answer as an operator, or ask the teacher again"
        return _verdict(case, Verdict.UNSCORED, Against.PASSAGE_CHANGED, detail, by="operator")
    return _verdict(case, Verdict.ACCEPTED, AcceptedAs.BY_OPERATOR, "written" if wrote else "approved", by="operator")


def _loose_sentence(case: _Case, shelf: Shelf) -> str | None:
    """Return a sentence that the passages do not support: those that the answer cites, or the whole handbook."""
    return unsupported_sentence(case.evidence, shelf.known(case.answer.passages), load_embedder().embed)


def _copies(run: Run, cases: Mapping[str, _Case], verdicts: Mapping[str, VerdictRow], shelf: Shelf | None) -> dict[str, str]:
    given, grounded = [], set()
    for name, case in cases.items():
        is_given = verdicts[name].verdict is Verdict.ACCEPTED and verdicts[name].reason == AcceptedAs.ANSWERED
        if not is_given or case.row.task is not Task.CONVERSATION:
            continue
        given.append(Given(case.row, case.answer))
        if shelf and case.answer.passages and fits(case.answer.text, shelf.known(case.answer.passages)):
            grounded.add(name)
    return copies_of_other_topics(given, run.settings.verify.near_copy_jaccard, lambda: load_embedder().embed, grounded)


async def _by_judge(run: Run, cases: Mapping[str, _Case], verdicts: dict[str, VerdictRow]) -> dict[str, Json]:
    """Let the judge compare accepted answers with what was logged; return its figures, empty where nobody was asked."""
    table = run.settings.judge
    if table is None or not table.reject_worse_than_logged:
        return {}
    wanted = [case for name, case in cases.items() if verdicts[name].verdict is Verdict.ACCEPTED and _is_comparable(case)]
    if not wanted:
        return {}
    async with open_judge(run) as judge:
        done = 0

        async def compare(case: _Case) -> Comparison:
            nonlocal done
            comparison = await _compared(judge, case)
            done += 1
            run.report_progress(
                Stage.VERIFY, 0.8 + 0.2 * done / len(wanted), f"{done} of {len(wanted)} compared by the judge"
            )
            return comparison

        compared = await asyncio.gather(*(compare(case) for case in wanted))
        for case, comparison in zip(wanted, compared, strict=True):
            if comparison.preference is Preference.SECOND:
                detail = comparison.detail[:200]
                verdicts[case.row.decision_id] = _verdict(
                    case, Verdict.REJECTED, Against.WORSE_THAN_LOGGED, detail, by="judge"
                )
            elif comparison.preference is Preference.UNSCORED:
                detail = comparison.detail[:200]
                verdicts[case.row.decision_id] = _verdict(
                    case, Verdict.UNSCORED, Unsaid.JUDGE_DID_NOT_SAY, detail, by="judge"
                )
        return judge.details()


def _is_comparable(case: _Case) -> bool:
    """Tell whether an answer must be at least as good as a reply in the log; held-out ones are not filtered, so nobody is paid."""
    logged = case.row.logged
    return (
        case.row.split is not Split.TEST
        and case.answer.author is AnswerAuthor.TEACHER
        and case.review is None
        and logged is not None
        and logged.author in (Author.OPERATOR, Author.IMPORTED)
        and bool(words(logged.content))
        and bool(words(case.answer.text))
    )


async def _compared(judge: Judge, case: _Case) -> Comparison:
    logged = case.row.logged
    assert logged is not None
    known = case.evidence.allowed.whole if case.evidence.allowed and case.answer.passages else ""
    return await judge.compare(case.row, case.answer.text, logged.content, known=known)


def _surplus(run: Run, rows: Sequence[ChosenRow], verdicts: Mapping[str, VerdictRow]) -> dict[str, str]:
    train = [verdicts[row.decision_id] for row in rows if row.split is Split.TRAIN]
    accepted = [each for each in train if each.verdict is Verdict.ACCEPTED]
    declined = [each.decision_id for each in accepted if each.reason == AcceptedAs.DECLINED]
    surplus = declined_surplus(declined, len(accepted) - len(declined), run.settings.verify.max_declined_share)
    return dict.fromkeys(surplus, "")


def _reject(verdicts: dict[str, VerdictRow], found: Mapping[str, str], reason: Against) -> None:
    for name, detail in found.items():
        update = {"verdict": Verdict.REJECTED, "reason": reason.value, "detail": detail}
        verdicts[name] = verdicts[name].model_copy(update=update)


def _no_answer(row: ChosenRow) -> VerdictRow:
    return VerdictRow(decision_id=row.decision_id, answer_id="", verdict=Verdict.UNSCORED, reason=Unsaid.NO_ANSWER.value)


def _erased(row: ChosenRow) -> VerdictRow:
    return VerdictRow(decision_id=row.decision_id, answer_id="", verdict=Verdict.REJECTED, reason=Against.ERASED.value)


def _verdict(case: _Case, verdict: Verdict, reason: str, detail: str = "", *, by: str = "rules") -> VerdictRow:
    return VerdictRow.model_validate(
        {
            "decision_id": case.row.decision_id,
            "answer_id": case.answer.answer_id,
            "verdict": verdict,
            "reason": str(reason),
            "detail": detail,
            "by": by,
        }
    )


def _retired_facts(run: Run, handbook: Handbook | None) -> list[Json]:
    """Return the facts that rows of the test edition expect and the handbook no longer has."""
    if handbook is None:
        return []
    frozen = newest_edition(run.record).lines.values()
    return list(retired_facts([DatasetRow.model_validate_json(line).labels for line in frozen], handbook))


def _counts(ordered: Sequence[VerdictRow]) -> Counts:
    by_verdict = Counter(each.verdict for each in ordered)
    reasons = Counter(each.reason for each in ordered if each.verdict is Verdict.REJECTED)
    return Counts(
        taken_in=len(ordered),
        accepted=by_verdict[Verdict.ACCEPTED],
        rejected=by_verdict[Verdict.REJECTED],
        unscored=by_verdict[Verdict.UNSCORED],
        rejected_by_reason=dict(sorted(reasons.items())),
    )


def _details(rows: Sequence[ChosenRow], ordered: Sequence[VerdictRow]) -> dict[str, Json]:
    accepted = [(row, each) for row, each in zip(rows, ordered, strict=True) if each.verdict is Verdict.ACCEPTED]
    unscored = Counter(each.reason for each in ordered if each.verdict is Verdict.UNSCORED)
    return {
        "declined": sum(each.reason == AcceptedAs.DECLINED for _, each in accepted),
        "declined_in_training": sum(
            each.reason == AcceptedAs.DECLINED and row.split is Split.TRAIN for row, each in accepted
        ),
        "refused_as_wanted": sum(each.reason == AcceptedAs.REFUSED for _, each in accepted),
        "by_operator": sum(each.by == "operator" for each in ordered),
        "unscored_by_reason": dict(sorted(unscored.items())),
        "held_out_rejected_but_kept": sum(
            row.split is Split.TEST and each.verdict is Verdict.REJECTED and each.reason != Against.ERASED
            for row, each in zip(rows, ordered, strict=True)
        ),
    }
