"""Whether an answer is in the customer's language.

In: the question with its history, and the answer. Out: the answer's language where it is surely another one, or None. Short or
mixed texts, and languages too alike to tell, are let through: a good answer lost is worse than a rare miss. A customer who names a
language wants that one.
"""

import re
from collections.abc import Mapping, Sequence

from conversations.language import language_of
from distill.dataset.similarity import words

_MIN_WORDS = 6
_MIN_OTHER_SCRIPT_LETTERS = 8
_SURE_SHARE = 0.8
# The ones that a model of letters takes for each other on a sentence.
_ALIKE = (
    {"da", "no", "sv"},
    {"cs", "sk"},
    {"hr", "sl"},
    {"ru", "bg"},
    {"es", "pt"},
    {"es", "it"},
    {"id", "tr"},
    {"nl", "de"},
)
_NAMED: Mapping[str, str] = {
    "uk": r"ukrainian|ukrainisch|ucraniano|ukrainien",
    "en": r"english|englisch|anglais|inglés",
    "de": r"german|deutsch|allemand|alemán",
    "fr": r"french|französisch|français|francés",
    "es": r"spanish|spanisch|espagnol|español",
    "pl": r"polish|polnisch|polski|polonais",
    "ru": r"russian|russisch|russe|ruso",
}
_ASKS_FOR = {
    code: re.compile(
        rf"\b(?:in|into|speak|auf|en|hablar?|parle[rz]?|sprechen|po) (?:{name})\b(?! \w+(?:s|es)\b)"
        rf"|^\W*(?:{name})\W*(?:please|bitte)?\W*$",
        re.I,
    )
    for code, name in _NAMED.items()
} | {
    "uk": re.compile(r"\bin ukrainian\b|\bукраїнською\b|\bauf ukrainisch\b", re.I),
    "ru": re.compile(r"\bin russian\b|\b(?:по-русски|на русском)\b", re.I),
}
# Words that make up a third of ordinary sentences and belong to one language.
_FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    "en": frozenset(
        words("the to and of is you your in for it that please are this with on we be if can will not or from have do")
    ),
    "de": frozenset(
        words("der die das und ist sie nicht ein eine zu den mit ihr ihre wir auf für bitte wenn oder im dem von kann haben")
    ),
    "fr": frozenset(words("le la les des et est vous votre une pour dans pas que qui sur avec du nous au ce être avez")),
    "es": frozenset(words("el la los las de y es usted su una para en que por con se del puede no favor tu si al")),
    "it": frozenset(words("il la gli di e è che per un una non con si del sono può nel suo della")),
    "nl": frozenset(words("de het een en van is u uw in niet met op voor dat te kunt als zijn wij")),
    "pt": frozenset(words("o a os as de e é que para um uma não com se do da em por você seu")),
    "pl": frozenset(words("i w na nie się jest to do z proszę że lub pan pani po")),
}
# Words of short questions that no other of these languages has.
_ASKING_WORDS: Mapping[str, frozenset[str]] = {
    "en": frozenset(words("how what when where why who my can do does the it is you your of not i'm to for have")),
    "de": frozenset(
        words(
            "wie wann warum wo ich mein meine meinen meiner kann können muss ist nicht der das und für mir mich bitte wir sie eine zum"
        )
    ),
    "fr": frozenset(words("comment quand où pourquoi je mon ma mes puis faire est pas le mot des vous avez")),
    "es": frozenset(words("cómo cuándo dónde qué mi mis puedo hacer está el los una usted tengo")),
}
_FEWEST_ASKING_WORDS = 2
_RUSSIAN_WORDS = frozenset(
    words(
        "и или если что это есть там как почему мой моя мне пожалуйста чтобы нужно можно он она они только "
        "сейчас уже после когда где нет"
    )
)
_UKRAINIAN_WORDS = frozenset(
    words(
        "і й та або якщо що це є як чому мій моя мені будь ласка щоб потрібно можна він вона вони лише тільки "
        "зараз вже після коли де немає"
    )
)
# Asked to speak a language, not about one ("how do I switch the app to English?").
_WANTS_REPLY = re.compile(
    r"\b(?:speak|answer|reply|respond|write|talk|explain|sprechen|antwort\w*|schreib\w*|parle\w*|répond\w*|hablar?"
    r"|respond\w*|відпові\w*|говор\w*|пиш\w*|ответ\w*)\b",
    re.IGNORECASE,
)
_BARE_REQUEST_WORDS = 5
_RUSSIAN_LETTERS, _UKRAINIAN_LETTERS = re.compile("[ыэъё]", re.IGNORECASE), re.compile("[іїєґ]", re.IGNORECASE)
_SCRIPTS = {
    "latin": re.compile("[a-zà-öø-ÿāăąćčďđēėęěğīıłńņňőœřśşšťūůűźżž]", re.IGNORECASE),
    "cyrillic": re.compile("[\u0400-\u04ff]"),
    "greek": re.compile("[\u0370-\u03ff]"),
    "arabic": re.compile("[\u0600-\u06ff]"),
    "hebrew": re.compile("[\u0590-\u05ff]"),
    "eastern": re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"),
    "thai": re.compile("[\u0e00-\u0e7f]"),
    "hindi": re.compile("[\u0900-\u097f]"),
}
_NOT_WORDS = re.compile(r"<[A-Z][A-Z0-9]*_\d+>|\b(?:https?://|www\.)\S+|`[^`]*`")


def other_language(answer: str, customer: Sequence[str], row_language: str) -> str | None:
    """Return the language that an answer is in, where it is surely not the customer's; `customer` has the question last."""
    said = _NOT_WORDS.sub(" ", answer)
    question = _NOT_WORDS.sub(" ", customer[-1]) if customer else ""
    named = {code for code, asks in _ASKS_FOR.items() if asks.search(question)}
    theirs, ours = _script(question) or _script(" ".join(customer)), _script(said)
    if ours and theirs and ours != theirs and not named:
        letters = len(_SCRIPTS[ours].findall(said))
        # One foreign word may be a name; scripts without spaces have no such words.
        is_text = len(said.split()) >= 2 or ours in ("eastern", "thai")
        return f"{ours} script" if letters >= _MIN_OTHER_SCRIPT_LETTERS and is_text else None
    if ours == theirs == "cyrillic" and not named:
        return _ukrainian_or_russian(" ".join(customer), said)
    own = _of_customer(question, customer, row_language)
    if named and own and not _WANTS_REPLY.search(question) and len(question.split()) > _BARE_REQUEST_WORDS:
        named.add(own)
    expected = named or {code for code in (own,) if code}
    if not expected:
        return None
    if len(said.split()) < _MIN_WORDS and ours == theirs:
        return None
    if named and ours and ours != theirs:
        # What was asked for by name may be in any script; only its own name can tell.
        return None if language_of(said) in {*named, ""} else language_of(said)
    found = language_of(said)
    if not found or found in expected or any({found, each} <= alike for each in expected for alike in _ALIKE):
        return None
    if not named and _sounds_more_like(found, expected, " ".join(customer)):
        # The customer writes the answer's language as well, or the guess at theirs was wrong.
        return None
    return found if _sounds_more_like(found, expected, said) else None


def _of_customer(question: str, customer: Sequence[str], row_language: str) -> str:
    """Return the language of the question, of all that the customer said where it is short, or what was noted of "
    "the row."""
    if len(question.split()) >= _MIN_WORDS and (code := language_of(question)):
        return code
    whole = " ".join(customer)
    return language_of(whole) if len(whole.split()) >= _MIN_WORDS else _of_short(whole) or row_language


def _of_short(question: str) -> str:
    """Return the language of a few words by those that no other language has; empty where they are too few or disagree."""
    spoken = re.findall(r"[^\W\d_]+", question.casefold())
    counts = {code: sum(word in own for word in spoken) for code, own in _ASKING_WORDS.items()}
    best = max(counts, key=lambda code: counts[code])
    is_sure = counts[best] >= _FEWEST_ASKING_WORDS and sum(counts.values()) == counts[best]
    return best if is_sure else ""


def _script(text: str) -> str:
    """Return the script of nearly all letters of a text; empty where it is mixed or has none."""
    counts = {name: len(letters.findall(text)) for name, letters in _SCRIPTS.items()}
    total = sum(counts.values())
    best = max(counts, key=lambda name: counts[name])
    return best if total >= 3 and counts[best] >= _SURE_SHARE * total else ""


def _ukrainian_or_russian(asked: str, said: str) -> str | None:
    """Tell the two by letters and small words that only one of them has; where the customer mixes both, either will do."""
    has_russian = _RUSSIAN_LETTERS.search(asked) or _spoken(asked, _RUSSIAN_WORDS - _UKRAINIAN_WORDS)
    has_ukrainian = _UKRAINIAN_LETTERS.search(asked) or _spoken(asked, _UKRAINIAN_WORDS - _RUSSIAN_WORDS)
    if (
        has_ukrainian
        and not has_russian
        and len(_RUSSIAN_LETTERS.findall(said)) + _spoken(said, _RUSSIAN_WORDS - _UKRAINIAN_WORDS) >= 2
        and not _UKRAINIAN_LETTERS.search(said)
    ):
        return "ru"
    if (
        has_russian
        and not has_ukrainian
        and len(_UKRAINIAN_LETTERS.findall(said)) + _spoken(said, _UKRAINIAN_WORDS - _RUSSIAN_WORDS) >= 2
        and not _RUSSIAN_LETTERS.search(said)
    ):
        return "uk"
    return None


def _spoken(text: str, of: frozenset[str]) -> int:
    return sum(word in of for word in re.findall(r"[^\W\d_]+", text.casefold()))


def _sounds_more_like(found: str, expected: set[str], said: str) -> bool:
    """Tell whether a text has more of the small words of the language found than of the expected ones."""
    spoken = re.findall(r"[^\W\d_]+", said.casefold())
    of_expected = max((sum(word in _FUNCTION_WORDS.get(code, ()) for word in spoken) for code in expected), default=0)
    of_found = sum(word in _FUNCTION_WORDS.get(found, ()) for word in spoken)
    if found in _FUNCTION_WORDS:
        return of_found > of_expected
    return of_expected == 0
