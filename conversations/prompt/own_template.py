"""The marks of a student whose chat format is none of the known ones, found out of its own chat template.

In: a checkpoint's template. Out: marks, as the differences between renderings of texts that are known; and whether the
renderer writes the very ids of the template. What cannot be told apart safely is refused: a template that changes earlier text,
that alters words, that opens an answer otherwise than it shows earlier ones, or that ends an answer without a token.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from conversations.messages import ChatMessage, Role
from conversations.prompt.chat_template import ChatTemplate
from conversations.prompt.marks import ChatFormat, Marks

if TYPE_CHECKING:
    from conversations.prompt.renderer import Renderer

_SPOKEN = (
    ChatMessage(Role.SYSTEM, "firstsentinel"),
    ChatMessage(Role.USER, "secondsentinel"),
    ChatMessage(Role.ASSISTANT, "thirdsentinel"),
    ChatMessage(Role.USER, "fourthsentinel"),
    ChatMessage(Role.ASSISTANT, "fifthsentinel"),
)
_ORDINARY = (
    ChatMessage(Role.SYSTEM, "Be brief.\n\nAnswer in one sentence."),
    ChatMessage(Role.USER, "My box blinks:  violet, 3x.\n\nWhat costs 12 €? 🙂"),
    ChatMessage(Role.ASSISTANT, "Hold the pin for 10 s.\n- then wait"),
    ChatMessage(Role.USER, "\tund jetzt – „später“?"),
    ChatMessage(Role.ASSISTANT, "Yes."),
)
_CHATML_DEFAULT_SYSTEM = re.compile(r"\A<\|im_start\|>system\n.*?<\|im_end\|>\n", re.DOTALL)
_SPACED = " \n words with space around \n "


def marks_of_template(template: ChatTemplate, control: Sequence[str]) -> Marks:
    """Return the marks of a template, by the differences between its renderings.

    control: the tokenizer's control tokens, spelt out.
    Raises OperatorError where the turns cannot be told apart.
    """
    before_system, after_system, before_answer, after_answer, before_second, tail = _between(template, _SPOKEN)
    if before_second != before_answer:
        raise template.refusal(f"opens later answers with {before_second!r} and the first with {before_answer!r}")
    for count in (2, 4):
        so_far = template.render(_SPOKEN[:count], opens_answer=True)
        if not template.render(_SPOKEN, opens_answer=False).startswith(so_far):
            raise template.refusal("writes earlier turns, or the opening of an answer, otherwise once a later turn is there")
    atoms = re.compile("|".join([*map(re.escape, sorted(control, key=len, reverse=True)), "."]), re.DOTALL)
    asked = _between(template, _SPOKEN[:2])[-1]
    close_user = _common(atoms.findall(before_answer), atoms.findall(asked))
    close_assistant = _common(atoms.findall(after_answer), atoms.findall(tail))
    open_user = after_answer.removeprefix(close_assistant)
    no_system = _between(template, _SPOKEN[1:3])[0]
    if not after_system.endswith(open_user) or not no_system.endswith(open_user):
        raise template.refusal("opens a first question otherwise than later ones")
    between = re.split("|".join(map(re.escape, control)), close_assistant)[-1]
    close_system = after_system.removesuffix(open_user)
    if not all(close.endswith(between) for close in (close_user, close_system)):
        raise template.refusal(f"writes {between!r} behind answers only")
    end = next(iter(atoms.findall(close_assistant)), "")
    if end not in control:
        raise template.refusal(f"writes {after_answer!r} behind an answer, which begins with no control token")
    return Marks(
        system_first=before_system,
        no_system=no_system.removesuffix(open_user),
        open={Role.USER: open_user, Role.ASSISTANT: before_answer.removeprefix(close_user)},
        close={
            Role.SYSTEM: close_system.removesuffix(between),
            Role.USER: close_user.removesuffix(between),
            Role.ASSISTANT: close_assistant.removesuffix(between),
        },
        between=between,
        end=end,
        stops=tuple(dict.fromkeys(mark for mark in (end, template.tokens["eos_token"]) if mark)),
        strips_text=_strips(template),
    )


def difference(renderer: "Renderer", template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """Return how a renderer's ids of ordinary text differ from those of the template's own rendering, or an empty string.

    tokenizer: the student's, as it reads a rendered template. ChatML is written without the system message that some templates
    put where there is none (SmolLM2's and Qwen2.5's name their makers).
    Raises OperatorError where the template cannot be rendered.
    """
    for messages in (_SPOKEN, _ORDINARY, _ORDINARY[1:]):
        for count in range(1, len(messages) + 1):
            said = messages[:count]
            if said[-1].role is Role.SYSTEM:
                continue
            opens_answer = said[-1].role is Role.USER
            text = template.render(said, opens_answer=opens_answer)
            if renderer.chat_format is ChatFormat.CHATML and said[0].role is not Role.SYSTEM:
                text = _CHATML_DEFAULT_SYSTEM.sub("", text)
            written = tokenizer.encode(text, add_special_tokens=False).ids
            if opens_answer:
                ours = list(renderer.prompt(said, max_prompt_tokens=100_000).token_ids)
            else:
                answer = renderer.answer(said[-1].content)
                ours = [*renderer.prompt(said[:-1], max_prompt_tokens=100_000).token_ids, *answer]
                if renderer.text(answer) != said[-1].content or answer[-1] not in renderer.stop_ids:
                    return f"does not give the answer {said[-1].content!r} back from its ids"
            # What a template writes behind the end of an answer (an end of the text, a line break) is never said.
            if ours != (written if opens_answer else written[: len(ours)]):
                return (
                    f"gives other ids for {said[-1].content!r} than its parts do: {renderer.text(written)!r} and "
                    f"{renderer.text(ours)!r}"
                )
    return ""


def _between(template: ChatTemplate, messages: Sequence[ChatMessage]) -> list[str]:
    """Return what stands before, between and behind the words of the messages."""
    rest = template.render(messages, opens_answer=False)
    parts = []
    for message in messages:
        if rest.count(message.content) != 1:
            raise template.refusal(
                f"writes the words of the {message.role} {rest.count(message.content)} times, or in another order"
            )
        part, _, rest = rest.partition(message.content)
        parts.append(part)
    return [*parts, rest]


def _common(left: Sequence[str], right: Sequence[str]) -> str:
    """Return the atoms that both begin with, as text."""
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    return "".join(left[:same])


def _strips(template: ChatTemplate) -> bool:
    """Return whether the template takes the space around words away, from every role or from none."""
    spaced = tuple(ChatMessage(message.role, _SPACED) for message in _SPOKEN[:2])
    bare = tuple(ChatMessage(message.role, _SPACED.strip()) for message in _SPOKEN[:2])
    written, stripped = (template.render(said, opens_answer=True) for said in (spaced, bare))
    if written == stripped:
        return True
    if written.count(_SPACED) == len(spaced) and written.replace(_SPACED, _SPACED.strip()) == stripped:
        return False
    raise template.refusal("alters the words, beyond the space around them")
