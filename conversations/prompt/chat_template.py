"""A checkpoint's own chat template: read out of its folder, and rendered as transformers would.

In: a checkpoint folder, which anybody may have made. Out: text, or a refusal. A template can raise nothing that ends in a
traceback, and is kept from looping for long; it reaches nothing outside its sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Json

# A published template counts messages, of which a check has five; the sandbox's own limit of 100,000 for one range lets two
# nested ones run for hours.
MOST_COUNTED = 10_000


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's own chat template, and the names of tokens that it may use."""

    path: Path
    text: str
    tokens: Mapping[str, str]

    def render(self, messages: Sequence[ChatMessage], *, opens_answer: bool) -> str:
        """Return the conversation as the template writes it.

        Raises OperatorError where the template fails, counts above MOST_COUNTED in all, or jinja2 is not installed.
        """
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            raise OperatorError(
                f"{self.path}: this student's chat format is checked against its template, and jinja2 is not installed; "
                "run `pip install -e '.[chat]'`"
            ) from None
        # As transformers renders chat templates, so that the same text comes out.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["range"] = _Counting().range
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
        except Exception as error:  # noqa: BLE001  # a template can raise whatever Python's operators do
            raise self.refusal(f"cannot be rendered: {type(error).__name__}: {str(error)[:300]}") from None

    def refusal(self, why: str) -> OperatorError:
        """Return the error that says why this template cannot be followed."""
        return OperatorError(
            f"{self.path}: the chat template {why}; expected one whose turns stand behind each other unchanged, each answer with "
            "an end-of-turn token; choose a student with another chat format"
        )


class _Counting:
    """What a template has counted in one rendering; all its ranges, nested ones too, share one limit."""

    def __init__(self) -> None:
        self._left = MOST_COUNTED

    def range(self, *bounds: int) -> range:
        counted = range(*bounds)
        # Taken from the ends: len() knows no range beyond the machine's word.
        length = max(0, (counted.stop - counted.start + counted.step - (1 if counted.step > 0 else -1)) // counted.step)
        # A range of nothing counts too, or a loop over it could be as long as it likes.
        self._left -= length + 1
        if self._left < 0:
            raise ValueError(f"it counts above {MOST_COUNTED}")
        return counted


def read_template(student_dir: Path) -> ChatTemplate | None:
    """Return the chat template of a checkpoint folder, None where it has none.

    Raises OperatorError where a file that would hold it is damaged.
    """
    config_path, template_path = student_dir / "tokenizer_config.json", student_dir / "chat_template.jinja"
    config = _config(config_path) if config_path.is_file() else {}
    text: Json = _text(template_path) if template_path.is_file() else config.get("chat_template")
    if isinstance(text, list):
        text = _default_of(text, config_path)
    if text is None:
        return None
    if not isinstance(text, str):
        raise _damaged(config_path, f"its chat_template is {type(text).__name__}")
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        tokens[name] = content if isinstance(content, str) else ""
    return ChatTemplate(template_path if template_path.is_file() else config_path, text, tokens)


def _refuse(why: object = "") -> None:
    raise ValueError(why)


def _default_of(named: list[Json], path: Path) -> Json:
    """Return the text of the template called "default", None where there is none."""
    for each in named:
        if not isinstance(each, dict) or not isinstance(each.get("template"), str):
            raise _damaged(path, "it names a chat template without text")
        if each.get("name") == "default":
            return each["template"]
    return None


def _config(path: Path) -> dict[str, Json]:
    try:
        held: Json = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON ({error})") from None
    if not isinstance(held, dict):
        raise _damaged(path, "it holds no object")
    return held


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from None


def _damaged(path: Path, why: str) -> OperatorError:
    return OperatorError(
        f"{path}: {why}; expected the file as the model's publisher wrote it; download the checkpoint again"
    )
