"""Signs of the machine behind an answer: tokens of chat formats, names of roles, thoughts said aloud, data in place of words.

In: the text of an answer. Out: the first sign, or None. Answers to arithmetic may think aloud: whoever calls leaves them out.
"""

import json
import re

_TOKENS = re.compile(
    r"<\|[a-z0-9_ ]+\|>|</?s>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?(?:think|thinking|reasoning"
    r"|scratchpad|tool_call|tool_response)>|<(?:eos|bos|pad|unk)>"
    r"|<｜[^｜<>]+｜>|^\s*#{2,3} ?(?:Instruction|Response|Human|Assistant)\b"
    r"|\"role\"\s*:\s*\"(?:assistant|system|user|tool)\"",
    re.IGNORECASE | re.MULTILINE,
)
# "model" alone on a line is Gemma's name for the role.
_BARE_ROLE = re.compile(r"\A\s*(?:assistant|model|bot)[ \t]*\n")
_ROLE_LINE = re.compile(
    r"^\s*(?P<role>Assistant|System|Human|User|Customer|AI|Bot|Support agent)\s*:", re.IGNORECASE | re.MULTILINE
)
# These are also what one fills in ("User: admin") and what a device needs ("System: Windows 11").
_FIELDS = ("user", "system", "customer")
_LABELLED = re.compile(
    r"^\s*(?:[-*•]\s*)?(?!Assistant\b|Human\b|AI\b|Bot\b|User\b|System\b|Customer\b)[^\W\d_][\w /-]{1,30}:\s*\S", re.I
)
_THOUGHTS = re.compile(
    r"\A\W*(?:(?:okay|ok|alright|hmm|so|right|well|first)\b[,.]? )*(?:the|this) (?:user|customer)(?:'s)? "
    r"(?:wants|want|is asking|asks|asked|has asked|said|says|seems|question|query|message|request)\b"
    r"|\A\W*(?:(?:okay|ok|alright|hmm|so|first)\b[,.]? )*(?:let me|let's|i need to) think\b(?! about (?:your|it for you))"
    r"|^[ \t*#>]*(?:final answer|my final answer|chain of thought|internal reasoning)\W*:|[.!?] final answer:",
    re.IGNORECASE | re.MULTILINE,
)
_CALL = re.compile(r"\A\s*(?:functions\.\w+|[a-z]+(?:_[a-z]+)+)\([^()]*\)\s*;?\s*\Z")
_FENCED = re.compile(r"\A```\w*\s*\n(?P<inside>.*)\n\s*```\Z", re.DOTALL)


def control_token(text: str) -> str | None:
    """Return the first token of a chat format or name of a role."""
    found = _TOKENS.search(text) or _BARE_ROLE.search(text)
    return found.group() if found else _role_line(text)


def thoughts(text: str) -> str | None:
    """Return what a model says to itself about the customer before it answers."""
    found = _THOUGHTS.search(text)
    return found.group() if found else None


def call_as_text(text: str) -> str | None:
    """Return a tool call that stands where the words should, as JSON or as code, and nothing else."""
    held = data_as_text(text)
    if held is not None:
        return held if {"arguments", "parameters"} & held_keys(held) and {"name", "function"} & held_keys(held) else None
    return text.strip() if _CALL.match(text) else None


def data_as_text(text: str) -> str | None:
    """Return the JSON object that an answer is, alone or in one fence."""
    text = text.strip()
    fenced = _FENCED.match(text)
    inside = fenced["inside"].strip() if fenced else text
    return inside if held_keys(inside) else None


def held_keys(text: str) -> frozenset[str]:
    """Return the keys of the JSON object that a text is; none where it is no object."""
    if not text.startswith("{"):
        return frozenset()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(found) if isinstance(found, dict) else frozenset()


def _role_line(text: str) -> str | None:
    """Look for a turn of a conversation; a field of a list of fields is none."""
    lines = [line for line in text.splitlines() if line.strip()]
    for place, line in enumerate(lines):
        found = _ROLE_LINE.match(line)
        if found is None:
            continue
        before = lines[place - 1] if place else ""
        after = lines[place + 1] if place + 1 < len(lines) else ""
        is_listed = before.rstrip().endswith(":") or _LABELLED.match(before) or _LABELLED.match(after)
        if found["role"].casefold() not in _FIELDS or not is_listed:
            return found.group().strip()
    return None
