"""Damage: text that no customer should be shown and no student should learn, by its characters and its markup.

In: the text of an answer. Out: the first piece that is damaged, or None. A customer's own message may hold anything; this is
about answers alone. Markdown that the chat page shows harmlessly (tables, lists, closed code blocks) is no damage.
"""

import re
import unicodedata

CONTROL_TOKENS = re.compile(
    r"<\|[a-z0-9_ ]+\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?(?:think|thinking|reasoning"
    r"|tool_call|tool_response)>"
    r"|<｜[^｜<>]+｜>|^\s*#{2,3} ?(?:Instruction|Response|Human|Assistant)\b"
    r"|^\s*(?:Assistant|System|Human|User|Customer|AI|Bot|Support agent)\s*:"
    r"|\"role\"\s*:\s*\"(?:assistant|system|user|tool)\"",
    re.IGNORECASE | re.MULTILINE,
)
_UNSAFE_MARKUP = re.compile(
    r"<!(?:doctype|entity|\[cdata)"
    r"|</?(?:script|iframe|img|svg|object|embed|form|input|button|style|link|meta|base|html|body|div|span|table|tr"
    r"|td|a|font|br|b|i|p)"
    r"(?=[\s/>])[^<]*>?"
    r"|&(?:amp;)*lt;/?[a-z]|\bon(?:click|load|error|focus|mouse\w+|key\w+)\s*="
    r"|\b(?:javascript|vbscript):[^\s]|\bfile:/{2,}|\bdata:[a-z]+/[a-z0-9.+-]+[;,]"
    r"|!\[[^\]]*\]\([^)]*\)"
    r"|https?://[^\s/@]+:[^\s/@]+@|https?://(?:localhost|127\.|10\.|169\.254\.|192\.168\.|0\.0\.0\.0|\[::1\])"
    r"|mailto:[^\s]*%0[ad]"
    r"|\A[=@+-][A-Z]+\(",
    re.IGNORECASE,
)
_TEMPLATE_LEFT = re.compile(
    r"\{\{.*?\}\}|\{%.*?%\}|\$\{[^}]*\}|(?<![\w`])\{[a-z]+(?:_[a-z]+)*\}(?!\w)|(?<![\w%])%[A-Z]{3,}(?:_[A-Z]+)*%(?!\w)"
    r"|\[(?:your|customer|company|agent|insert|name of|order)[ _'’a-z]*\]|<(?:your|insert|customer"
    r"|company)[ _a-z]+>|\bLorem ipsum\b",
    re.IGNORECASE,
)
_ERROR_TEXT = re.compile(
    r"\A\W*(?:null|undefined|none|nan|n/a|error|\[object \w+\]|\[?(?:image|deleted|removed)\]?)\W*\Z|\[object Object\]"
    r"|\bTraceback \(most recent call last\)|^\s*File \"[^\"]+\", line \d+|^\s*at [\w.$]+\([\w.]+:\d+\)"
    r"|\b\w+(?:Error|Exception): "
    r"|\b(?:HTTP|status)[ /:]*(?:code )?(?:4\d\d|5\d\d)\b.{0,40}\b(?:error|unavailable|gateway)\b|\A\s*<html\b"
    r"|\brate limit exceeded\b",
    re.IGNORECASE | re.MULTILINE,
)
# The customer's reader runs these from right to left, or does not show them at all.
_HIDDEN = re.compile("[\u202a-\u202e\u200b\u2060-\u2064\u00ad\ufeff\u180e\u115f\u3164]")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufff9-\ufffb]|[\ufdd0-\ufdef\ufffe\uffff]")
_TAG_CHARACTERS = re.compile("(?<!\U0001f3f4)(?<![\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+")
_STYLED_LETTERS = re.compile("[\U0001d400-\U0001d7ff]{3,}|(?:[\U0001d400-\U0001d7ff]+ ?){3,}")
_FOREIGN_RUN = re.compile("[^\x00-\x7f]{2,}")
_MOJIBAKE_SHORT = re.compile("[ÃÂâÐÑ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")
_MOST_MARKS = 4
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)


def unsafe_markup(text: str) -> str | None:
    """Return the first piece of HTML, of a loaded image, of a script or of an address that only does harm."""
    found = _UNSAFE_MARKUP.search(_without_code(text))
    return found.group() if found else None


def template_left(text: str) -> str | None:
    """Return the first gap of a template that nobody has filled."""
    found = _TEMPLATE_LEFT.search(_without_code(text))
    return found.group() if found else None


def error_text(text: str) -> str | None:
    """Return what shows that a program's failure was written down as an answer."""
    found = _ERROR_TEXT.search(text)
    return found.group() if found else None


def broken_text(text: str) -> str | None:
    """Return the first thing that makes a text unreadable or other than it looks."""
    if len(_FENCE.findall(text)) % 2:
        return "a code block that is not closed"
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
