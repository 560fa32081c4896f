"""Verify: which answers may be learnt, by checks that always say the same of the same answer.

In: `choose/decisions.jsonl` and `teach/answers.jsonl`. Out: a verdict with its reason for every chosen decision in
`verify/verdicts.jsonl`, and on the answers in the record. Held-out decisions get a verdict like the others, but it filters
nothing there. Labels are not looked at: they measure, they never teach. It calls nobody.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conversations.decisions import Verdict, give_verdict
from conversations.messages import Role, Split
from conversations.redaction import RedactionRules, Redactor, SecondPass
from distill.dataset.handbook.articles import Handbook, sentences
from distill.dataset.second_pass import is_known_to_chat, second_pass
from distill.dataset.similarity import words
from distill.rows import AnswerRow, ChosenRow, VerdictRow, read_rows
from distill.run import Counts, Outcome, Run, Stage
from distill.settings import VerifyTable

_CONTROL_TOKENS = re.compile(
    r"<\|[a-z0-9_]+\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|^\s*#{2,3} ?(?:Instruction|Response|Human|Assistant)\b"
    r"|^\s*(?:Assistant|System|Human|User|Customer)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9]*_\d+>")
_LIST_MARK = re.compile(r"^\s*\d{1,2}[.)]\s", re.MULTILINE)
_VALUE = re.compile(r"\b[A-Z]+-?\d+\b|\d+(?:[.,]\d+)*")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_GROUPED_WITH_DOTS = re.compile(r"\d{1,3}(?:\.\d{3})+,\d+")
_LEAKED_RUN_WORDS = 8
_REPEATED_RUN_WORDS = 6
_REPEATED_RUN_TIMES = 3
_MIN_REPEATED_SENTENCE_WORDS = 4


@dataclass(frozen=True)
class Evidence:
    """An answer with all that it is held against. `allowed` is every text it may take a number from."""

    row: ChosenRow
    answer: AnswerRow
    allowed: str | None
    table: VerifyTable
    rules: RedactionRules
    second_pass: SecondPass | None = None

    @property
    def asked(self) -> str:
        """Everything that was said before the answer."""
        return "\n".join(message.content for message in self.row.messages)


def verify(run: Run) -> Outcome:
    """Give every chosen decision's answer a verdict."""
    settings = run.settings
    rows = list(read_rows(run.stage_folder(Stage.CHOOSE) / "decisions.jsonl", ChosenRow))
    answers = {each.decision_id: each for each in read_rows(run.stage_folder(Stage.TEACH) / "answers.jsonl", AnswerRow)}
    handbook = Handbook.load(settings.handbook.path) if settings.handbook else None
    further = second_pass(settings.redaction)
    verdicts: dict[str, VerdictRow] = {}
    for place, row in enumerate(rows):
        answer = answers.get(row.decision_id)
        if answer is None:
            verdicts[row.decision_id] = _verdict(row, None, Verdict.UNSCORED, "no_answer")
        else:
            evidence = Evidence(row, answer, _allowed(answer, handbook), settings.verify, settings.redaction.rules, further)
            reason, detail = judge(evidence)
            verdict = Verdict.REJECTED if reason else Verdict.ACCEPTED
            verdicts[row.decision_id] = _verdict(row, answer, verdict, reason or _accepted_as(evidence), detail)
        run.report_progress(Stage.VERIFY, place / len(rows))
    surplus = _declined_surplus(rows, verdicts, settings.verify.max_declined_share)
    for decision_id in surplus:
        verdicts[decision_id] = verdicts[decision_id].model_copy(
            update={"verdict": Verdict.REJECTED, "reason": "declined_surplus"}
        )
    ordered = [verdicts[row.decision_id] for row in rows]
    given = {each.answer_id: (each.verdict, each.reason) for each in ordered if each.answer_id}
    give_verdict(run.record, given)
    run.write_rows(Stage.VERIFY, "verdicts.jsonl", ordered)
    return Outcome(_counts(ordered), _details(rows, ordered))


def judge(evidence: Evidence) -> tuple[str, str]:
    """Return the first reason against an answer and what was found; two empty strings when nothing speaks against it."""
    for reason, check in _CHECKS.items():
        found = check(evidence)
        if found is not None:
            return reason, found[:200]
    return "", ""


def declines(text: str, phrases: Sequence[str]) -> bool:
    """Tell whether an answer says that it does not know."""
    plain = text.replace("’", "'").casefold()
    return any(phrase.replace("’", "'").casefold() in plain for phrase in phrases)


def _truncated(evidence: Evidence) -> str | None:
    return evidence.answer.finish_reason if evidence.answer.finish_reason == "length" else None


def _filtered(evidence: Evidence) -> str | None:
    reason = evidence.answer.finish_reason
    return reason if reason not in ("stop", "length", "unknown", "end_turn", "eos") else None


def _empty(evidence: Evidence) -> str | None:
    return "" if not words(evidence.answer.text) else None


def _too_short(evidence: Evidence) -> str | None:
    count = len(evidence.answer.text.split())
    return f"{count} words" if count < evidence.table.min_answer_words else None


def _too_long(evidence: Evidence) -> str | None:
    count = len(evidence.answer.text.split())
    return f"{count} words" if count > evidence.table.max_answer_words else None


def _control_tokens(evidence: Evidence) -> str | None:
    found = _CONTROL_TOKENS.search(evidence.answer.text)
    return found.group() if found else None


def _system_prompt_leaked(evidence: Evidence) -> str | None:
    told = " ".join(message.content for message in evidence.row.messages if message.role is Role.SYSTEM)
    runs = _runs(words(told), _LEAKED_RUN_WORDS)
    return next((" ".join(run) for run in _runs(words(evidence.answer.text), _LEAKED_RUN_WORDS) if run in set(runs)), None)


def _placeholder_not_in_question(evidence: Evidence) -> str | None:
    known = set(_PLACEHOLDER.findall(evidence.asked))
    return next((found for found in _PLACEHOLDER.findall(evidence.answer.text) if found not in known), None)


def _placeholder_unknown_to_chat(evidence: Evidence) -> str | None:
    """Look for a placeholder that only the second pass gives: the chat has no such one, and would show it to the customer."""
    placeholders = _PLACEHOLDER.findall(evidence.answer.text)
    return next((each for each in placeholders if not is_known_to_chat(each[1:].split("_")[0], evidence.rules)), None)


def _personal_data(evidence: Evidence) -> str | None:
    """Look for personal data that the handbook does not print; the question's own is a placeholder by now."""
    redactor = Redactor(evidence.rules, evidence.second_pass)
    redactor.redact(evidence.answer.text)
    allowed = evidence.allowed or ""
    found = redactor.placeholders.originals.items()
    return next((name for name, text in found if text not in allowed and not _PLACEHOLDER.fullmatch(text)), None)


def _repeats(evidence: Evidence) -> str | None:
    said = [tuple(words(sentence)) for sentence in sentences(evidence.answer.text)]
    twice = [each for each, count in Counter(said).items() if count > 1 and len(each) >= _MIN_REPEATED_SENTENCE_WORDS]
    runs = Counter(_runs(words(evidence.answer.text), _REPEATED_RUN_WORDS))
    often = [run for run, count in runs.items() if count >= _REPEATED_RUN_TIMES]
    return next((" ".join(found) for found in [*twice, *often]), None)


def _unsupported_number(evidence: Evidence) -> str | None:
    """Look for an amount, number or code that stands neither in the passages nor in what was said."""
    if evidence.allowed is None:
        return None
    known = _values(evidence.allowed) | _values(evidence.asked)
    return next((value for value in sorted(_values(_LIST_MARK.sub("", evidence.answer.text))) if value not in known), None)


_CHECKS: Mapping[str, Callable[[Evidence], str | None]] = {
    "truncated": _truncated,
    "filtered_by_teacher": _filtered,
    "empty": _empty,
    "too_short": _too_short,
    "too_long": _too_long,
    "control_tokens": _control_tokens,
    "system_prompt_leaked": _system_prompt_leaked,
    "placeholder_not_in_question": _placeholder_not_in_question,
    "placeholder_unknown_to_chat": _placeholder_unknown_to_chat,
    "personal_data": _personal_data,
    "repeats_itself": _repeats,
    "unsupported_number": _unsupported_number,
}


def _allowed(answer: AnswerRow, handbook: Handbook | None) -> str | None:
    """Return the texts that an answer may take numbers from: the passages it names, or the whole handbook; None without one."""
    if handbook is None:
        return None
    cited = [handbook.passages[name] for name in answer.passages if name in handbook.passages]
    return "\n".join(f"{passage.title}\n{passage.text}" for passage in cited or handbook.passages.values())


def _values(text: str) -> set[str]:
    """Return numbers and codes, written one way: 6,35 and 6.35 are the same, and so are LT-38 and LT38."""
    found = {each.replace("-", "") for each in _VALUE.findall(_PLACEHOLDER.sub(" ", text))}
    return {_as_plain_number(each) for each in found}


def _as_plain_number(value: str) -> str:
    """Return 9,000 as 9000, 1.234,50 as 1234.5, 6,35 as 6.35, 12.0 as 12; a lone 1.000 may be either and stays."""
    if _GROUPED.fullmatch(value):
        value = value.replace(",", "")
    elif _GROUPED_WITH_DOTS.fullmatch(value):
        value = value.replace(".", "").replace(",", ".")
    else:
        value = value.replace(",", ".")
    whole, point, decimals = value.partition(".")
    return value if not point or len(decimals) > 2 else f"{whole}.{decimals}".rstrip("0").rstrip(".")


def _runs(said: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(said[start : start + length]) for start in range(len(said) - length + 1)]


def _accepted_as(evidence: Evidence) -> str:
    return "declined" if declines(evidence.answer.text, evidence.table.declining_phrases) else "answered"


def _verdict(row: ChosenRow, answer: AnswerRow | None, verdict: Verdict, reason: str, detail: str = "") -> VerdictRow:
    answer_id = answer.answer_id if answer else ""
    return VerdictRow(decision_id=row.decision_id, answer_id=answer_id, verdict=verdict, reason=reason, detail=detail)


def _declined_surplus(rows: Sequence[ChosenRow], verdicts: Mapping[str, VerdictRow], max_share: float) -> list[str]:
    """Return the declining answers beyond their share of the training part; a student that only declines is no use."""
    train = [verdicts[row.decision_id] for row in rows if row.split is Split.TRAIN]
    accepted = [each for each in train if each.verdict is Verdict.ACCEPTED]
    declined = sorted(
        (each.decision_id for each in accepted if each.reason == "declined"),
        key=lambda name: hashlib.sha256(name.encode()).hexdigest(),
    )
    answered = len(accepted) - len(declined)
    # declined / (declined + answered) <= share
    allowed = len(declined) if max_share >= 1 else int(answered * max_share / (1 - max_share))
    return declined[allowed:]


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


def _details(rows: Sequence[ChosenRow], ordered: Sequence[VerdictRow]) -> dict[str, int]:
    accepted = [(row, each) for row, each in zip(rows, ordered, strict=True) if each.verdict is Verdict.ACCEPTED]
    return {
        "declined": sum(each.reason == "declined" for _, each in accepted),
        "declined_in_training": sum(each.reason == "declined" and row.split is Split.TRAIN for row, each in accepted),
        "held_out_rejected_but_kept": sum(
            row.split is Split.TEST and each.verdict is Verdict.REJECTED for row, each in zip(rows, ordered, strict=True)
        ),
    }
