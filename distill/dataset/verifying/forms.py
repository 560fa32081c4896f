"""The form of an answer: whole, of a fit length, free of the machine's own signs, of secrets and of personal data.

In: the evidence. Out: what was found, or None. Each check always says the same of the same answer.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address

from conversations.decisions import AnswerAuthor
from conversations.messages import Role
from conversations.redaction import Redactor
from distill.dataset.handbook.articles import sentences
from distill.dataset.second_pass import is_known_to_chat
from distill.dataset.similarity import words
from distill.dataset.verifying import damage, machine_signs
from distill.dataset.verifying.evidence import PLACEHOLDER, Evidence
from distill.rows import Task

# What providers say of a whole answer, and what stands where they did not say.
_WHOLE, _UNSAID = ("stop", "end_turn", "eos", "stop_sequence"), ("unknown", "")
_CALLS = ("tool_calls", "function_call", "tool_use")
# Words that end no sentence; "to", "in" and "that" do ("log in", "ask about that").
_CUT_OFF = frozenset(
    words("the a an and or of your our their my because which whose und oder weil et ou des du el los y o і та або")
)
_LETTERED = re.compile(
    r"\b(?:plan|option|tariff|tarif|vitamin|type|class|model|version|variant|step|section|appendix|category|group|grade|size|zone"
    r"|terminal|gate|block|building|room|level|tier|paket|point|exit|key|letter|button|port|line|side)\W+[a-zа-яіїєґ]$",
    re.IGNORECASE,
)
_BEGUN_ITEM = re.compile(r"\n\s*(?:\d{1,2}[.)]|[-*•–])\s*\Z")
_CLOSING_LINE = re.compile(
    r"(?:regards|wishes|thanks|cheers|sincerely|grüßen?|gruß|cordialement|saludos|повагою)\W*\Z", re.IGNORECASE
)
_ENDS_WHOLE = re.compile(
    r"(?:[^\w\s,;:(\[{–—-]|\d|<[A-Z][A-Z0-9]*_\d+>|(?:https?://|www\.)\S+|\S+@\S+|\b[\w-]+\.[a-z]{2,})[\s*_\"'”’»)\]]*\Z"
)
_SHORT_LINE_WORDS = 5
_END_CHARACTERS = 200
_LEAKED_RUN_WORDS = 8
_LEAKED_WHATEVER_IT_SAYS = 14
# What a prompt says to the assistant, and no assistant says to a customer.
_TOLD_TO_ASSISTANT = frozenset(words("never instructions prompt persona reveal disclose confidential internal"))
_TELLS_OF_PROMPT = re.compile(
    r"\bmy (?:system prompt|instructions|rules|guidelines|notes|prompt)\b|\bi (?:was|am|have been|'m|'ve been) (?:told"
    r"|instructed|programmed)\b",
    re.IGNORECASE,
)
_TOLD_RUN_WORDS = 4
_QUOTED = re.compile(r"\"[^\"]{3,}\"|“[^”]{3,}”|(?<!\w)'[^'\n]{8,}'(?!\w)")
_LIST_LINE = re.compile(r"^\s*(?:[-*+•–]|\d{1,2}[.)])\s.*$", re.MULTILINE)
_REPEATED_RUN_WORDS = 6
_REPEATED_RUN_TIMES = 3
_MIN_REPEATED_SENTENCE_WORDS = 4
_TITLED_NAME = re.compile(r"\b(?:Mr|Mrs|Ms|Miss|Herrn?|Frau|Madame|Monsieur|Señora?|Пане?|Пані)\.? ([A-ZÄÖÜА-ЯІЇЄҐ][\w'-]+)")
_STREET = re.compile(
    r"\b\d{1,5}[a-z]? (?:[A-Z][a-z]+ ){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Court|Ct|Boulevard"
    r"|Blvd|Terrace|Close)\b"
    r"|\b[A-ZÄÖÜ][a-zäöüß]+(?:straße|strasse|gasse|allee|platz) \d{1,4}\b"
)
_OFFICE_MAILBOX = re.compile(
    r"(?:support|service|help|info|contact|kontakt|office|sales|billing|care|customer[._-]?(?:service|care|support)|kundenservice"
    r"|returns|orders|no-?reply|privacy|datenschutz)@[\w.-]+\Z",
    re.IGNORECASE,
)
_FREE_CALL = re.compile(
    r"(?:\+?1[ .-]?)?\(?8(?:00|33|44|55|66|77|88)\)?[ .-]?\d{3}[ .-]?\d{4}\Z|0 ?800[ -]?\d[\d -]{4,9}\Z|00800[ -]?\d[\d -]{6,9}\Z"
)
_FEWEST_DIGITS = 6
_SAME_WORD = re.compile(r"\b([^\W\d_]{2,})(?:\W+\1\b){4}", re.IGNORECASE)
_ANY_LENGTH = (Task.NLI, Task.MATH, Task.QA)


def truncated(evidence: Evidence) -> str | None:
    """Look for an answer that its limit cut off, or that ends in a word which must be followed by another."""
    if evidence.answer.finish_reason == "length":
        return "the limit on its length"
    text = evidence.answer.text.rstrip()
    if evidence.tool_calls or evidence.row.task in _ANY_LENGTH:
        return None
    end = text[-_END_CHARACTERS:]
    last = re.search(r"(?<=\s)[^\W\d_]+$", end)
    is_cut = last is not None and last.group() in _CUT_OFF and len(text.split()) > 3 and not _LETTERED.search(end)
    is_open = _BEGUN_ITEM.search(end) or (text.endswith((":", ",")) and not _CLOSING_LINE.search(end))
    is_unsure = evidence.answer.author is AnswerAuthor.TEACHER and evidence.answer.finish_reason in _UNSAID
    return f"ends in {text[-30:]!r}" if is_cut or is_open or (is_unsure and not _ends_whole(text)) else None


def _ends_whole(text: str) -> bool:
    """Tell whether a text ends like a sentence, an item of a list or a line of few words."""
    last_line = text.rsplit("\n", 1)[-1]
    is_item = _LIST_LINE.match(last_line) is not None
    return bool(_ENDS_WHOLE.search(text[-_END_CHARACTERS:])) or is_item or len(last_line.split()) <= _SHORT_LINE_WORDS


def filtered(evidence: Evidence) -> str | None:
    """Look for a reason to stop that is none of a whole answer; what people wrote had no such reason."""
    reason = evidence.answer.finish_reason
    if evidence.answer.author in (AnswerAuthor.LOGGED, AnswerAuthor.OPERATOR) or reason in (*_WHOLE, *_UNSAID, "length"):
        return None
    return None if reason in _CALLS and evidence.tool_calls else reason


def empty(evidence: Evidence) -> str | None:
    """Look for an answer without a word and without a tool call."""
    return "" if not words(evidence.answer.text) and not evidence.tool_calls else None


def too_short(evidence: Evidence) -> str | None:
    """Look for an answer of fewer words than the settings ask for; a label or a result may be one word."""
    if evidence.tool_calls or evidence.row.task in _ANY_LENGTH:
        return None
    spoken = evidence.answer.text.split()
    # Languages that put no spaces between words are counted by their signs.
    dense = sum("\u0e00" <= sign <= "\u0e7f" or "\u2e80" <= sign <= "\u9fff" for sign in evidence.answer.text) // 2
    count = max(len(spoken), dense)
    return f"{count} words" if count < evidence.table.min_answer_words else None


def too_long(evidence: Evidence) -> str | None:
    """Look for an answer of more words than the settings allow, or a summary longer than what it sums up."""
    count = len(evidence.answer.text.split())
    if evidence.row.task is Task.SUMMARIZATION and count > len(evidence.question.split()):
        return f"{count} words for a source of {len(evidence.question.split())}"
    return f"{count} words" if count > evidence.table.max_answer_words else None


def control_tokens(evidence: Evidence) -> str | None:
    """Look for tokens of chat formats, thoughts, the names of roles, and data where words should be."""
    text = evidence.answer.text
    found = machine_signs.control_token(text)
    if found or evidence.row.task in _ANY_LENGTH:
        return found
    is_data_wanted = evidence.row.offered.response_format_json or re.search(r"\bjson\b", evidence.asked, re.IGNORECASE)
    return machine_signs.thoughts(text) or (None if is_data_wanted else machine_signs.data_as_text(text))


def broken_text(evidence: Evidence) -> str | None:
    """Look for characters that no reader should meet."""
    return damage.broken_text(evidence.answer.text)


def unsafe_markup(evidence: Evidence) -> str | None:
    """Look for markup that a page must not show."""
    return damage.unsafe_markup(evidence.answer.text, evidence.question)


def template_left(evidence: Evidence) -> str | None:
    """Look for a gap that nobody has filled; one that the customer has written may be quoted."""
    left = damage.templates_left(PLACEHOLDER.sub(" ", evidence.answer.text))
    return next((gap for gap in left if gap not in evidence.asked), None)


def error_text(evidence: Evidence) -> str | None:
    """Look for a program's failure in place of an answer; one that the customer has quoted may be repeated."""
    found = (
        damage.error_text(evidence.answer.text) if evidence.answer.text and evidence.row.task not in _ANY_LENGTH else None
    )
    return found if found and found.strip() not in evidence.asked else None


def system_prompt_leaked(evidence: Evidence) -> str | None:
    """Look for words of the system prompt that were meant for the assistant alone.

    That is a run of eight words with one that speaks to the assistant, or a run so long that it was copied. What the prompt puts
    in quotes is to be said, what the handbook prints may be, and system messages after the customer's first are results of tools.
    """
    head = []
    for message in evidence.row.messages:
        if message.role is not Role.SYSTEM:
            break
        head.append(message.content)
    prompt = "\n".join(head)
    said = words(evidence.answer.text)
    short, long = _prompt_runs(prompt)
    leaked = next((run for run in _runs(said, _LEAKED_RUN_WORDS) if run in short), None)
    leaked = leaked or next((run for run in _runs(said, _LEAKED_WHATEVER_IT_SAYS) if run in long), None)
    if leaked is None and _TELLS_OF_PROMPT.search(evidence.answer.text):
        told = set(_runs(words(prompt), _TOLD_RUN_WORDS))
        leaked = next((run for run in _runs(said, _TOLD_RUN_WORDS) if run in told), None)
    if leaked is None:
        return None
    printed = " ".join(words(evidence.allowed.whole)) if evidence.allowed else ""
    return None if " ".join(leaked) in printed else " ".join(leaked)


@lru_cache(maxsize=256)
def _prompt_runs(prompt: str) -> tuple[frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]]:
    """Return the runs of words of a prompt that must not be said: short ones that speak to the assistant, and all "
    "long ones."""
    told = words(_QUOTED.sub(" ", prompt))
    short = (
        run for run in _runs(told, _LEAKED_RUN_WORDS) if not _TOLD_TO_ASSISTANT.isdisjoint(run) or "you are" in " ".join(run)
    )
    return frozenset(short), frozenset(_runs(told, _LEAKED_WHATEVER_IT_SAYS))


def placeholder_not_in_question(evidence: Evidence) -> str | None:
    """Look for a placeholder that the conversation does not have."""
    known = set(PLACEHOLDER.findall(evidence.asked))
    return next((found for found in PLACEHOLDER.findall(_said(evidence)) if found not in known), None)


def placeholder_unknown_to_chat(evidence: Evidence) -> str | None:
    """Look for a placeholder that only the second pass gives: the chat has no such one, and would show it to the "
    "customer."""
    placeholders = PLACEHOLDER.findall(_said(evidence))
    return next((each for each in placeholders if not is_known_to_chat(each[1:].split("_")[0], evidence.rules)), None)


def personal_data(evidence: Evidence) -> str | None:
    """Look for personal data that neither the handbook nor the operator prints; the question's own is a placeholder by now."""
    redactor = Redactor(evidence.rules, evidence.second_pass)
    redactor.redact(_said(evidence))
    allowed = f"{evidence.allowed.whole if evidence.allowed else ''}\n{evidence.printed}"
    found = redactor.placeholders.originals.items()
    kind = next((name for name, text in found if not _is_companys(text, allowed, evidence)), None)
    if kind:
        return kind
    name = next((found for found in _TITLED_NAME.finditer(evidence.answer.text) if found[1] not in evidence.asked), None)
    if name and name.group() not in allowed:
        return "a name"
    # Where there is no handbook, an address may well be the company's own.
    homes = _STREET.findall(evidence.answer.text) if evidence.allowed else []
    return next(("an address" for home in homes if home not in allowed and home not in evidence.asked), None)


def _is_companys(text: str, allowed: str, evidence: Evidence) -> bool:
    """Tell whether a find is printed by the company, or without a handbook nobody's: an office's mailbox, a number free of charge."""
    if text in allowed or PLACEHOLDER.fullmatch(text):
        return True
    digits = re.sub(r"\D", "", text)
    if len(digits) >= _FEWEST_DIGITS and digits in re.sub(r"(?<=\d)[ ()/.-]+(?=[\d(])", "", allowed):
        return True
    if _is_home_network(text):
        return True
    return evidence.allowed is None and bool(_OFFICE_MAILBOX.match(text) or _FREE_CALL.match(text.strip()))


def _is_home_network(text: str) -> bool:
    """Tell whether a text is an address inside a home or an office, which is the same in millions of them."""
    try:
        return ip_address(text.strip()).is_private
    except ValueError:
        return False


def repeats_itself(evidence: Evidence) -> str | None:
    """Look for a sentence said twice, six words thrice, or a word five times on end; the items of a list may well be alike."""
    text = _LIST_LINE.sub("", evidence.answer.text)
    said = [tuple(words(sentence)) for sentence in sentences(text)]
    twice = [each for each, count in Counter(said).items() if count > 1 and len(each) >= _MIN_REPEATED_SENTENCE_WORDS]
    runs = Counter(_runs(words(text), _REPEATED_RUN_WORDS))
    often = [run for run, count in runs.items() if count >= _REPEATED_RUN_TIMES and len(set(run)) > 1]
    same = _SAME_WORD.search(evidence.answer.text)
    return next((" ".join(found) for found in [*twice, *often]), same.group() if same else None)


def _said(evidence: Evidence) -> str:
    """Return all that an answer says, in its text and in its tool calls."""
    return f"{evidence.answer.text}\n{evidence.answer.extra_json}" if evidence.answer.extra_json else evidence.answer.text


def _runs(said: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(said[start : start + length]) for start in range(len(said) - length + 1)]
