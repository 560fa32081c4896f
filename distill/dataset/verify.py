"""Verify: which of the teacher's answers may be learnt, and why not the others.

In: the chosen decisions and the teacher's answers. Out: `verify/verdicts.jsonl`, one verdict with its reason for every
answer. Rules only, and each looks at one answer, its question and the passages it rests on. Answers of test decisions get their
verdict like the others; whether it matters is not decided here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from conversations import decisions
from conversations.decisions import Verdict
from conversations.messages import Role, Split
from conversations.redaction import PLACEHOLDER, RedactionRules, Redactor
from distill.dataset.handbook import Handbook
from distill.dataset.similarity import words
from distill.rows import AnswerRow, ChosenRow, VerdictRow, read_rows
from distill.run import Counts, Outcome, Run, Stage
from distill.settings import VerifyTable


class Reason(StrEnum):
    """Why an answer is not learnt."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TEMPLATE_TOKENS = "template_tokens"
    SYSTEM_PROMPT_LEAKED = "system_prompt_leaked"
    PERSONAL_DATA = "personal_data"
    FOREIGN_PLACEHOLDER = "placeholder_not_in_question"
    REPEATS_ITSELF = "repeats_itself"
    UNSUPPORTED_NUMBER = "unsupported_number"
    DECLINED_SURPLUS = "declined_surplus"


_TEMPLATE = re.compile(
    r"<\|[a-z_0-9]+\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|^(?:user|assistant|system)\s*:", re.I | re.M
)
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_LIST_MARK = re.compile(r"(?m)^\s*\d+[.)]\s+")
_LEAK_WORDS = 8
_REPEATED_WORDS = 6


@dataclass(frozen=True)
class _Case:
    """An answer with all that a rule may look at."""

    row: ChosenRow
    answer: AnswerRow
    support: str | None
    rules: RedactionRules


def verify(run: Run) -> Outcome:
    """Give every answer its verdict."""
    rows = {row.decision_id: row for row in read_rows(run.folder / Stage.CHOOSE / "decisions.jsonl", ChosenRow)}
    answers = list(read_rows(run.folder / Stage.TEACH / "answers.jsonl", AnswerRow))
    table = run.settings.verify
    passages = _passages(run)
    verdicts: list[VerdictRow] = []
    for index, answer in enumerate(answers):
        support = None if passages is None else " ".join(passages.get(name, "") for name in answer.passages)
        case = _Case(rows[answer.decision_id], answer, support, run.settings.redaction.rules)
        verdicts.append(_judge(case, table))
        run.report_progress(Stage.VERIFY, 0.99 * (index + 1) / len(answers))
    verdicts = _cap_declined(verdicts, rows, answers, table)
    run.write_rows(Stage.VERIFY, "verdicts.jsonl", verdicts)
    decisions.give_verdict(run.record, {row.answer_id: (row.verdict, row.reason) for row in verdicts})
    return Outcome(_counts(verdicts), {"rules": [reason.value for reason in Reason]})


def declines(text: str, phrases: Sequence[str]) -> bool:
    """Tell whether an answer says that it does not know."""
    plain = text.replace("\u2019", "'").casefold()
    return any(phrase.casefold() in plain for phrase in phrases)


def _judge(case: _Case, table: VerifyTable) -> VerdictRow:
    for reason, rule in _RULES.items():
        detail = rule(case, table)
        if detail:
            return _verdict(case.answer, Verdict.REJECTED, reason.value, detail)
    return _verdict(case.answer, Verdict.ACCEPTED, "", "")


def _verdict(answer: AnswerRow, verdict: Verdict, reason: str, detail: str) -> VerdictRow:
    return VerdictRow(
        decision_id=answer.decision_id, answer_id=answer.answer_id, verdict=verdict, reason=reason, detail=detail[:200]
    )


def _is_empty(case: _Case, _: VerifyTable) -> str:
    return "" if case.answer.text.strip() else "no text"


def _is_truncated(case: _Case, _: VerifyTable) -> str:
    return f"finish_reason {case.answer.finish_reason!r}" if case.answer.finish_reason == "length" else ""


def _is_short(case: _Case, table: VerifyTable) -> str:
    count = len(case.answer.text.split())
    return f"{count} words" if count < table.min_answer_words else ""


def _is_long(case: _Case, table: VerifyTable) -> str:
    count = len(case.answer.text.split())
    return f"{count} words" if count > table.max_answer_words else ""


def _has_template(case: _Case, _: VerifyTable) -> str:
    found = _TEMPLATE.search(case.answer.text)
    return repr(found.group()) if found else ""


def _leaks_system_prompt(case: _Case, _: VerifyTable) -> str:
    """Tell whether a run of words of the system prompt stands in the answer."""
    system = [message.content for message in case.row.messages if message.role is Role.SYSTEM]
    said = " ".join(words(case.answer.text))
    for prompt in system:
        told = words(prompt)
        for start in range(len(told) - _LEAK_WORDS + 1):
            run_of_words = " ".join(told[start : start + _LEAK_WORDS])
            if run_of_words in said:
                return run_of_words
    return ""


def _has_personal_data(case: _Case, _: VerifyTable) -> str:
    redactor = Redactor(case.rules)
    found = redactor.redact(case.answer.text)
    # What the handbook itself publishes (a hotline, an address for mail) is nobody's personal data.
    support = case.support or ""
    private = [value for value in redactor.placeholders.originals.values() if value not in support]
    return ", ".join(PLACEHOLDER.findall(found)) if private else ""


def _has_foreign_placeholder(case: _Case, _: VerifyTable) -> str:
    asked = {name for message in case.row.messages for name in PLACEHOLDER.findall(message.content)}
    return ", ".join(sorted(set(PLACEHOLDER.findall(case.answer.text)) - asked))


def _repeats_itself(case: _Case, _: VerifyTable) -> str:
    said = words(case.answer.text)
    runs = [" ".join(said[start : start + _REPEATED_WORDS]) for start in range(len(said) - _REPEATED_WORDS + 1)]
    return next((each for each in runs if runs.count(each) > 2), "")


def _has_unsupported_number(case: _Case, _: VerifyTable) -> str:
    """Tell whether an answer that rests on passages states a number that neither they nor the conversation hold."""
    if case.support is None or not case.answer.passages:
        return ""
    known = set(_NUMBER.findall(case.support))
    known |= {number for message in case.row.messages for number in _NUMBER.findall(message.content)}
    return ", ".join(sorted(set(_NUMBER.findall(_LIST_MARK.sub("", case.answer.text))) - known))


_RULES: Mapping[Reason, Callable[[_Case, VerifyTable], str]] = {
    Reason.EMPTY: _is_empty,
    Reason.TRUNCATED: _is_truncated,
    Reason.TOO_SHORT: _is_short,
    Reason.TOO_LONG: _is_long,
    Reason.TEMPLATE_TOKENS: _has_template,
    Reason.SYSTEM_PROMPT_LEAKED: _leaks_system_prompt,
    Reason.PERSONAL_DATA: _has_personal_data,
    Reason.FOREIGN_PLACEHOLDER: _has_foreign_placeholder,
    Reason.REPEATS_ITSELF: _repeats_itself,
    Reason.UNSUPPORTED_NUMBER: _has_unsupported_number,
}


def _cap_declined(
    verdicts: Sequence[VerdictRow], rows: Mapping[str, ChosenRow], answers: Sequence[AnswerRow], table: VerifyTable
) -> list[VerdictRow]:
    """Keep answers that decline down to their allowed share of training, lest the student learn to decline everything."""
    texts = {answer.answer_id: answer.text for answer in answers}

    def learnt(verdict: VerdictRow) -> bool:
        return verdict.verdict is Verdict.ACCEPTED and rows[verdict.decision_id].split is not Split.TEST

    declined = [v for v in verdicts if learnt(v) and declines(texts[v.answer_id], table.declining_phrases)]
    answered = sum(learnt(verdict) for verdict in verdicts) - len(declined)
    share = table.max_declined_share
    room = len(declined) if share >= 1 else int(answered * share / (1 - share))
    # By the decision's name, which is a hash: the same ones whatever the order.
    surplus = {verdict.answer_id for verdict in sorted(declined, key=lambda v: v.decision_id)[room:]}
    return [
        verdict.model_copy(
            update={"verdict": Verdict.REJECTED, "reason": Reason.DECLINED_SURPLUS.value, "detail": f"{room} allowed"}
        )
        if verdict.answer_id in surplus
        else verdict
        for verdict in verdicts
    ]


def _passages(run: Run) -> dict[str, str] | None:
    """Return the handbook's passages by hash with their titles, or None without a handbook."""
    if run.settings.handbook is None:
        return None
    handbook = Handbook.load(run.settings.handbook.path)
    return {
        passage.passage_hash: f"{passage.title}\n{passage.text}"
        for article in handbook.articles
        for passage in article.passages
    }


def _counts(verdicts: Sequence[VerdictRow]) -> Counts:
    rejected: dict[str, int] = {}
    for row in verdicts:
        if row.verdict is Verdict.REJECTED:
            rejected[row.reason] = rejected.get(row.reason, 0) + 1
    total = sum(rejected.values())
    return Counts(
        taken_in=len(verdicts),
        accepted=sum(row.verdict is Verdict.ACCEPTED for row in verdicts),
        rejected=total,
        unscored=sum(row.verdict is Verdict.UNSCORED for row in verdicts),
        rejected_by_reason=dict(sorted(rejected.items())),
    )
