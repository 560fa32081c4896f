"""Damage: text that no customer should be shown and no student should learn, by its characters and its markup.

In: the text of an answer. Out: the first piece that is damaged, or None. A customer's own message may hold anything; this is
about answers alone. Markdown that the chat page shows harmlessly (tables, lists, closed code blocks) is no damage.
"""

import re
import unicodedata

_UNSAFE_MARKUP = re.compile(
    r"<!(?:doctype|entity|\[cdata)"
    r"|</?(?:script|iframe|img|svg|object|embed|form|input|button|style|link|meta|base|html|body|div|span|table|tr"
    r"|td|a|font|br|b|i|p)"
    r"(?=[\s/>])[^<]*>?"
    r"|&(?:amp;)*lt;/?[a-z]|\bon(?:click|load|error|focus|mouse\w+|key\w+)\s*="
    r"|\b(?:javascript|vbscript):[^\s]|\bfile:/{2,}|\bdata:[a-z]+/[a-z0-9.+-]+[;,]"
    r"|!\[[^\]]*\]\([^)]*\)"
    # 192.168 and 10 are the customer's own router, and its address is how one gets there.
    r"|https?://[^\s/@]+:[^\s/@]+@|https?://(?:localhost|127\.|169\.254\.|0\.0\.0\.0|\[::1\])"
    r"|mailto:[^\s]*%0[ad]"
    r"|\A[=@+-][A-Z]+\(",
    re.IGNORECASE,
)
# Tags without attributes that do no harm: where they are spoken of they are the answer, elsewhere they are left over.
_PLAIN_TAG = re.compile(r"</?(?:b|i|p|br|div|span|table|tr|td)\s*/?>", re.IGNORECASE)
_SPEAKS_OF_TAGS = re.compile(
    r"\b(?:html|tags?|markup|bold|italics?|formatting|fett|kursiv|gras|negrita)\b|\b(?:тег|жирн|курсив)", re.IGNORECASE
)
_TEMPLATE_LEFT = re.compile(
    r"\{\{.*?\}\}|\{%.*?%\}|\$\{[^}]*\}|(?<![\w`])\{[a-z]+(?:_[a-z]+)*\}(?!\w)|(?<![\w%])%[A-Z]{3,}(?:_[A-Z]+)*%(?!\w)"
    r"|\[(?:your|customer|company|agent|insert|name of|order|ihr|ihre|votre|ваш)(?:[ _'’-][^\W\d][\w '’-]*)?\](?!\()"
    r"|\[(?:first |last |full )?(?:name|surname|phone|e-?mail|address|date|person|location|organi[sz]ation|datum"
    r"|telefonnummer|ім'я|nom|nombre)(?:[ _](?:number|address))?(?:_\d+)?\](?!\()"
    r"|<(?:your|insert|customer|company)[ _a-z]+>|\bLorem ipsum\b|\b(?:dear|hello|hi|mr|ms|mrs)\.? x{3,}\b",
    re.IGNORECASE,
)
# What Windows fills in by itself.
_WINDOWS_VARIABLE = re.compile(
    r"%(?:(?:LOCAL)?APPDATA|USERPROFILE|TE?MP|WINDIR|PROGRAM(?:FILES|DATA)|SYSTEM(?:ROOT|DRIVE)|HOME(?:PATH|DRIVE)|USERNAME"
    r"|COMPUTERNAME|PUBLIC|PATH)%",
    re.IGNORECASE,
)
# A gap that the customer is to fill: "write the subject as: Cancellation [order number]".
_TO_BE_FILLED = re.compile(
    r"(?<!i )(?<!we )(?<!i'll )(?<!we'll )(?<!i will )(?<!we will )\b(?:write|enter|type|text|send|use|put|subject|format|replace"
    r"|schreiben|geben|betreff|напишіть|введіть|тема|écrivez|saisissez|objet|escriba|asunto)\b[^\n]{0,80}\Z",
    re.IGNORECASE,
)
_FILLED_BY_US = re.compile(r"\A[\[<{]+ ?(?:insert|agent|company|customer)", re.IGNORECASE)
_BEFORE_GAP_CHARACTERS = 200
_CUSTOMERS_GAP = re.compile(r"\A\[(?:your |ihr |ihre |votre |ваш )?[^\]]{3,}\]\Z", re.IGNORECASE)
_ERROR_TEXT = re.compile(
    r"\A\W*(?:null|undefined|none|nan|n/a|error|\[object \w+\]|\[?(?:image|deleted|removed)\]?)\W*\Z|\[object Object\]"
    r"|\bTraceback \(most recent call last\)|^\s*File \"[^\"]+\", line \d+|^\s*at [\w.$]+\([\w.]+:\d+\)"
    r"|\A\s*<html\b|\b(?:model|engine|api) is (?:currently |temporarily )?(?:overloaded|at capacity|unavailable)\b"
    r"|\A\W*(?:[45]\d\d\W+)?(?:internal (?:server )?error|bad (?:gateway|request)|service (?:temporarily |is )?unavailable"
    r"|gateway time-?out|too many requests|(?:read |request |connection )timed? ?out|(?:server|connection|network) error"
    r"|unauthori[sz]ed|forbidden|access denied|(?:something went wrong|an? (?:unknown |unexpected |internal )*error (?:has )?occurred"
    r"(?: while processing your request)?))\W*(?:please )?(?:try|retry)?(?: again)?(?: later)?\W*\Z"
    r"|\b(?:maximum )?context length (?:is |was )?exceeded\b|\b(?:invalid|incorrect) api key\b|\binsufficient_quota\b",
    re.IGNORECASE | re.MULTILINE,
)
# These are also what a customer may see and wants explained.
_ERROR_NAMED = re.compile(
    r"\b\w+(?:Error|Exception): "
    r"|\b(?:HTTP|status)[ /:]*(?:code )?(?:4\d\d|5\d\d)\b.{0,40}\b(?:error|unavailable|gateway)\b"
    r"|\b(?:HTTP )?(?:4\d\d|5\d\d) error\b|\brate limit exceeded\b",
    re.IGNORECASE | re.MULTILINE,
)
_EXPLAINS = re.compile(
    r"\b(?:means?|meaning|happens?|if|when|see|shows?|appears?|says|tells|comes from|bedeutet|heißt|wenn|означає|якщо|коли|signifie"
    r"|si|significa)\b",
    re.IGNORECASE,
)
_KEYBOARD_ROWS = (
    "qwertyuiop",
    "qwertzuiopü",
    "asdfghjklöä",
    "zxcvbnm",
    "yxcvbnm",
    "йцукенгшщзхї",
    "фівапролджє",
    "ячсмитьбю",
)
_ALONG_A_ROW = frozenset(
    row[start : start + length]
    for each in _KEYBOARD_ROWS
    for row in (each, each[::-1])
    for length in range(4, len(row) + 1)
    for start in range(len(row) - length + 1)
)
_FEWEST_KEYS_IN_A_ROW = 3
# The customer's reader runs these from right to left, or does not show them at all.
_HIDDEN = re.compile("[\u202a-\u202e\u200b\u2060-\u2064\u00ad\ufeff\u180e\u115f\u3164]")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufff9-\ufffb]|[\ufdd0-\ufdef\ufffe\uffff]")
_TAG_CHARACTERS = re.compile("(?<!\U0001f3f4)(?<![\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+")
_STYLED_LETTERS = re.compile("[\U0001d400-\U0001d7ff]{3,}|(?:[\U0001d400-\U0001d7ff]+ ?){3,}")
_FOREIGN_RUN = re.compile("[^\x00-\x7f]{2,}")
_MOJIBAKE_SHORT = re.compile("[ÃÂâÐÑ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")
_MOST_MARKS = 4
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)


def unsafe_markup(text: str, question: str = "") -> str | None:
    """Return the first piece of HTML, of a loaded image, of a script or of an address that only does harm."""
    text = _without_code(text)
    if _SPEAKS_OF_TAGS.search(text) or _SPEAKS_OF_TAGS.search(question):
        text = _PLAIN_TAG.sub(" ", text)
    found = _UNSAFE_MARKUP.search(text)
    return found.group() if found else None


def templates_left(text: str) -> list[str]:
    """Return the gaps of a template that nobody has filled, without those that the customer is to fill."""
    text = _without_code(text)
    return [
        found.group()
        for found in _TEMPLATE_LEFT.finditer(text)
        if not _WINDOWS_VARIABLE.fullmatch(found.group())
        and not _is_customers_gap(found.group(), text[max(0, found.start() - _BEFORE_GAP_CHARACTERS) : found.start()])
    ]


def error_text(text: str) -> str | None:
    """Return what shows that a program's failure was written down as an answer; one that is explained is none."""
    found = _ERROR_TEXT.search(text)
    if found is None:
        named = _ERROR_NAMED.search(text)
        found = named if named and not _EXPLAINS.search(text) else None
    return found.group() if found else None


def broken_text(text: str) -> str | None:
    """Return the first thing that makes a text unreadable or other than it looks."""
    if len(_FENCE.findall(text)) % 2:
        return "a code block that is not closed"
    mashed = [word for word in text.casefold().split() if word.strip(".,!?") in _ALONG_A_ROW]
    if len(mashed) >= _FEWEST_KEYS_IN_A_ROW:
        return f"keys pressed in a row: {' '.join(mashed)!r}"
    found = _CONTROLS.search(text)
    if found:
        return f"the character U+{ord(found.group()):04X}"
    if text.isascii():
        return None
    found = _HIDDEN.search(text) or _TAG_CHARACTERS.search(text)
    if found:
        return f"the hidden character U+{ord(found.group()[0]):04X}"
    found = _STYLED_LETTERS.search(text)
    if found:
        return f"letters that are signs: {found.group()!r}"
    return _heaped_marks(text) or _mojibake(text) or _mixed_scripts(text)


def _is_customers_gap(gap: str, before: str) -> bool:
    """Tell whether a gap stands in words that the customer is to write."""
    sentence = re.split(r"[.!?]\s|\n\n", before)[-1]
    return bool(_CUSTOMERS_GAP.match(gap) and not _FILLED_BY_US.match(gap) and _TO_BE_FILLED.search(sentence))


def _heaped_marks(text: str) -> str | None:
    """Look for letters under heaps of marks, as no writing system has."""
    heap = 0
    for character in text:
        heap = heap + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if heap > _MOST_MARKS:
            return f"more than {_MOST_MARKS} marks on one letter"
    return None


def _mojibake(text: str) -> str | None:
    """Look for UTF-8 that was read as Windows-1252: characters that turn into fewer, valid ones when it is undone."""
    for found in _FOREIGN_RUN.finditer(text):
        if not _MOJIBAKE_SHORT.search(found.group()):
            continue
        for piece in re.findall("[ÂÃâÐÑ][^\x00-\x7f]+", found.group()):
            for length in (2, 3, len(piece)):
                if _undone(piece[:length]):
                    return repr(piece)
    return None


def _undone(piece: str) -> str | None:
    try:
        undone = bytes(_byte(each) for each in piece).decode("utf-8")
    except ValueError:
        return None
    return undone if len(undone) < len(piece) else None


def _byte(character: str) -> int:
    try:
        return character.encode("cp1252")[0]
    except UnicodeEncodeError:
        return ord(character)  # above 255 is no byte, and `bytes` says so


def _mixed_scripts(text: str) -> str | None:
    """Look for a word of Latin and Cyrillic letters, as made to look like another address."""
    for word in re.findall(r"[^\W\d_]{3,}", text):
        if re.search("[a-zA-Z]", word) and re.search("[\u0400-\u04ff]", word):
            inside = re.fullmatch("[a-zA-Z]{2,}[\u0400-\u04ff]{1,4}", word)
            # An ending on a foreign name is grammar.
            if not inside:
                return f"Latin and Cyrillic letters in {word!r}"
    return None


def _without_code(text: str) -> str:
    """Return a text without its closed code blocks and spans, which the page shows as they are."""
    return re.sub(r"```.*?```|~~~.*?~~~|`[^`\n]+`", " ", text, flags=re.DOTALL)
