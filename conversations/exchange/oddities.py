"""What a person should know of a conversation that is kept unchanged all the same.

In: the texts of one conversation. Out: a sentence for each oddity. What it names is not mended here: the pages show text as
text, the prompt inserts control tokens by id, and `distill` decides what is worth learning.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from conversations.messages import ChatMessage, Role

# The last two of each of the seventeen planes.
_LAST_TWO = "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
# Each pattern is bounded or looks behind itself, so that it stays linear on a message of millions of characters.
# A look for one sign is a hundred times faster than a pattern, so each pattern names the signs without which it finds nothing.
_ODD_TEXTS = (
    ("markup or script in a message", "<", re.compile(r"<\s{0,4}/?\s{0,4}[a-zA-Z!][^<>]*>")),
    ("markup or script in a message", ":", re.compile(r"javascript:|data:text/html", re.IGNORECASE)),
    ("markup or script in a message", "=", re.compile(r"\bon(?:error|load|click|focus|mouseover)\s{0,4}=", re.IGNORECASE)),
    ("markup or script in a message", "![", re.compile(r"!\[[^\[\]]{0,300}\]\(")),
    ("markup or script in a message", "&", re.compile(r"&(?:lt|#0{0,8}60|#x0{0,8}3c);", re.IGNORECASE)),
    ("control tokens of a chat format typed as text", "<|", re.compile(r"<\|[a-z_0-9]{1,40}\|>")),
    ("control tokens of a chat format typed as text", "INST]", re.compile(r"\[/?INST\]")),
    ("control tokens of a chat format typed as text", "<", re.compile(r"<(?:start|end)_of_turn>|<</?SYS>>|</?think>|</?s>")),
    ("a cell that a spreadsheet would take for a formula", "(", re.compile(r"(?m)^[=@][A-Za-z]{2,20}\(")),
    ("a line that pretends to be another speaker", ":", re.compile(r"\n(?:system|assistant|user|human)\s{0,4}:", re.IGNORECASE)),
)  # fmt: skip
_STEERING = re.compile(r"[\x01-\x08\x0e-\x1f\x7f]")
_ODD_CHARACTERS = (
    ("invisible or direction-changing characters", re.compile("[\u202a-\u202e\u2060-\u2064\u200b\u00ad\ufeff\U000e0000-\U000e007f]")),
    ("characters that Unicode assigns to nothing", re.compile(f"[\ufdd0-\ufdef{_LAST_TWO}]")),
    ("replacement characters, where a program has lost what was said", re.compile("\ufffd")),
    ("marks piled upon letters", re.compile("[\u0300-\u036f]{4}")),
    ("letters of two scripts in one word", re.compile("[A-Za-z][\u0370-\u03ff\u0400-\u04ff]|[\u0370-\u03ff\u0400-\u04ff][A-Za-z]")),
    ("mathematical letters in place of common ones", re.compile("[\U0001d400-\U0001d7ff]")),
    ("text that was decoded wrongly (mojibake)", re.compile("[ÃÐÑ][\u0080-\u00bf\u0152-\u0178\u2018-\u2022]|â€")),
)  # fmt: skip
_ENCODED_CHARACTERS = 2000
_ENCODED = re.compile(rf"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/=]{{{_ENCODED_CHARACTERS}}}")
# Two letters or digits together, or one sign of a script in which that is a word.
_WORD = re.compile(r"[^\W_]{2}|(?![\x00-\u2e7f])[^\W_]")
_UNUSUAL_NAME = re.compile(r"[\s/\\<>'\";]|\.\.")
_DEVICES = ("CON", "PRN", "AUX", "NUL")


def oddities(source_id: str, messages: Sequence[ChatMessage]) -> list[str]:
    """Return what is odd about a conversation, one sentence each."""
    found = ["an unusual id, kept as text only"] if _is_unusual_name(source_id) else []
    whole = "\n" + "\n".join(message.content for message in messages)
    found += [sentence for sentence, sign, pattern in _ODD_TEXTS if sign in whole and pattern.search(whole)]
    if _STEERING.search(whole):
        found.append("control characters, such as those that steer a terminal")
    if not whole.isascii():
        found += [sentence for sentence, pattern in _ODD_CHARACTERS if pattern.search(whole)]
    if any(len(message.content) >= _ENCODED_CHARACTERS and _ENCODED.search(message.content) for message in messages):
        found.append("a very long run without a space, as of encoded data")
    if not any(_WORD.search(message.content) for message in messages if message.role is Role.USER):
        found.append("no word in what the customer says")
    said = [message.content.strip().casefold() for message in messages]
    if len(said) >= 6 and len(set(said)) * 2 <= len(said):
        found.append("the same message again and again")
    if any(one == two and one for one, two in pairwise(said)):
        found.append("a message repeats the one before it")
    return list(dict.fromkeys(found))


def _is_unusual_name(name: str) -> bool:
    return (
        len(name) > 200
        or _UNUSUAL_NAME.search(name) is not None
        or name.upper() in _DEVICES
        or unicodedata.normalize("NFC", name) != name
    )
