"""Untrusted words for the chat page: as plain as they were typed, or with the little Markdown that an answer needs.

In: what a customer or a student wrote. Out: Markdown for the page that can bring no picture, no HTML and no hidden link.
The page's own sanitizer and content policy stand behind this; the record keeps the words as they came.
"""

import re

# What Markdown acts on anywhere, and what it acts on at the start of a line.
_ACTIVE = re.compile(r"[\\*_`\[\]<>~|&$]|^[#+=-]|(?<=^\d)[.)]|(?<=^\d\d)[.)]", re.MULTILINE)
_LEADING_SPACES = re.compile(r"^[ \t]+", re.MULTILINE)
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\]\(\s*<?([^)\s>]*)>?[^)]*\)")
_TAG_OPENS = re.compile(r"<(?=[A-Za-z/!?])")
_LINK_CLOSES = re.compile(r"\](?=[(\[:])")
_NO_BREAK = "\N{ZERO WIDTH SPACE}"


def plain(text: str) -> str:
    """Return Markdown that shows a text exactly as it was typed."""
    indented = _LEADING_SPACES.sub(lambda found: "\N{NO-BREAK SPACE}" * len(found.group()), text)
    # A character reference is text to Markdown whatever stands around it.
    return _ACTIVE.sub(lambda found: f"&#{ord(found.group())};", indented)


def reduced(text: str) -> str:
    """Return an answer's Markdown with emphasis, lists, tables and code only; a link shows where it leads."""
    without_images = _IMAGE.sub(lambda found: found.group(1), text)
    with_addresses = _LINK.sub(lambda found: f"{found.group(1)} ({found.group(2)})", without_images)
    # An invisible space keeps the rest from being a tag or a link, and changes no letter of it.
    return _LINK_CLOSES.sub("]" + _NO_BREAK, _TAG_OPENS.sub("<" + _NO_BREAK, with_addresses))
