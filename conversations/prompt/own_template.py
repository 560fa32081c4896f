"""The marks of a student whose chat format is none of the known ones, found out of its own chat template.

In: a checkpoint's template. Out: marks, as the differences between renderings of texts that are known; and a check that the
renderer writes the very ids of the template. What cannot be told apart safely is refused: a template that changes earlier text,
that alters words, that opens an answer otherwise than it shows earlier ones, or that ends an answer without a token.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Json, Role
from conversations.prompt.marks import Marks

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
_SPACED = " \n words with space around \n "


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's own chat template, and the names of tokens that it may use."""

    path: Path
    text: str
    tokens: Mapping[str, str]

    def render(self, messages: Sequence[ChatMessage], *, opens_answer: bool) -> str:
        """Return the conversation as the template writes it.

        Raises OperatorError where the template fails or jinja2 is not installed.
        """
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            raise OperatorError(
                f"{self.path}: this student's chat format is read from its template, and jinja2 is not installed; "
                "run `pip install -e '.[chat]'`"
            ) from None
        # As transformers renders chat templates, so that the same text comes out.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: "26 Jul 2024"
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        try:
            return environment.from_string(self.text).render(
                messages=[{"role": message.role.value, "content": message.content} for message in messages],
                add_generation_prompt=opens_answer,
                tools=None,
                documents=None,
                **self.tokens,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise self.refusal(f"cannot be rendered: {error}") from None

    def refusal(self, why: str) -> OperatorError:
        """Return the error that says why this template cannot be followed."""
        return OperatorError(
            f"{self.path}: the chat template {why}; expected one whose turns stand behind each other unchanged, each answer with "
            "an end-of-turn token; choose a student with another chat format"
        )

    def _refuse(self, why: str) -> None:
        raise ValueError(why)


def read_template(student_dir: Path) -> ChatTemplate:
    """Return the chat template of a checkpoint folder.

    Raises OperatorError where there is none.
    """
    config_path, template_path = student_dir / "tokenizer_config.json", student_dir / "chat_template.jinja"
    config: dict[str, Json] = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    text: Json = template_path.read_text(encoding="utf-8") if template_path.is_file() else config.get("chat_template")
    if isinstance(text, list):
        named = {str(each["name"]): each["template"] for each in text if isinstance(each, dict)}
        text = named.get("default")
    if not isinstance(text, str):
        raise OperatorError(
            f"{student_dir}: its control tokens are of no chat format that is known here, and it has no chat template; expected "
            "chat_template.jinja, or 'chat_template' in tokenizer_config.json; choose a student that was made for chat"
        )
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        tokens[name] = content if isinstance(content, str) else ""
    return ChatTemplate(template_path if template_path.is_file() else config_path, text, tokens)


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


def check_against_template(renderer: "Renderer", template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Raise OperatorError unless a renderer writes the ids of the template's own rendering of ordinary text.

    tokenizer: the student's, as it reads a rendered template.
    """
    for messages in (_SPOKEN, _ORDINARY, _ORDINARY[1:]):
        for count in range(1, len(messages) + 1):
            said = messages[:count]
            if said[-1].role is Role.USER:
                written = tokenizer.encode(template.render(said, opens_answer=True), add_special_tokens=False).ids
                ours = list(renderer.prompt(said, max_prompt_tokens=100_000).token_ids)
            elif said[-1].role is Role.ASSISTANT:
                written = tokenizer.encode(template.render(said, opens_answer=False), add_special_tokens=False).ids
                answer = renderer.answer(said[-1].content)
                ours = [*renderer.prompt(said[:-1], max_prompt_tokens=100_000).token_ids, *answer]
                written = written[: len(ours)]
                if renderer.text(answer) != said[-1].content or answer[-1] not in renderer.stop_ids:
                    raise template.refusal(f"does not give the answer {said[-1].content!r} back from its ids")
            else:
                continue
            if ours != written:
                raise template.refusal(
                    f"gives other ids for {said[-1].content!r} than its parts do: {renderer.text(written)!r} and "
                    f"{renderer.text(ours)!r}"
                )


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
