"""What the `support-bot` commands read from the settings file.

In: a settings file. Out: frozen models with the tables that this room needs. Holds no secret: the console's password comes
from the environment. Knows nothing of the teaching room's tables.
"""

from pathlib import Path

from pydantic import Field

from conversations.errors import OperatorError
from conversations.settings import (
    PromptTable,
    RecordTable,
    RedactionTable,
    RoomSettings,
    StudentTable,
    Table,
    read_settings,
)

# How often a page's queue looks for work. Gradio does so a thousand times a second, which takes a twelfth of a core for nothing.
QUEUE_LOOK_SECONDS = 0.02


class ServeTable(Table):
    """Where the two pages are, what they are called, and how long a customer may write and wait.

    `answers_at_once` is how many answers may be on their way in a chat process, `customer_answers_at_once` how many of them one
    customer may wait for; a message above either is not taken, and the page says so. A conversation in which nothing was said for
    `rest_hours` counts as a new one when a release is chosen for it. `shadow_answers_at_once` is how many answers of a shadow may
    be on their way; what comes above is dropped.
    """

    host: str = "127.0.0.1"
    chat_port: int = Field(default=7860, ge=1, le=65535)
    console_port: int = Field(default=7861, ge=1, le=65535)
    console_user: str = "operator"
    brand: str = "Support"
    chat_title: str = "How can we help?"
    chat_welcome: str = "You are talking to an AI assistant. It can be wrong; please check what matters."
    max_message_chars: int = Field(default=2000, ge=1)
    max_first_token_seconds: float = Field(default=60, gt=0)
    max_answer_seconds: float = Field(default=180, gt=0)
    answers_at_once: int = Field(default=200, ge=1)
    customer_answers_at_once: int = Field(default=3, ge=1)
    rest_hours: float = Field(default=12, gt=0)
    shadow_answers_at_once: int = Field(default=2, ge=1)


class SupportBotSettings(RoomSettings):
    """The tables that the `support-bot` commands read."""

    record: RecordTable
    student: StudentTable
    prompt: PromptTable
    redaction: RedactionTable = RedactionTable()
    serve: ServeTable = ServeTable()


def read_support_bot_settings(settings_file: Path | None) -> SupportBotSettings:
    """Read the settings of this room.

    Raises OperatorError for what is missing, unknown or mistyped, and for a prompt and an answer that do not fit together
    into the student's context.
    """
    settings = read_settings(SupportBotSettings, settings_file)
    longest = settings.prompt.max_prompt_tokens + settings.prompt.max_answer_tokens
    if longest > settings.student.max_model_len:
        raise OperatorError(
            f"{settings.settings_file}: [prompt] max_prompt_tokens and max_answer_tokens together are {longest} tokens; "
            f"[student] max_model_len allows {settings.student.max_model_len}; lower the first two or raise the last"
        )
    if settings.student.keep_hours < settings.serve.rest_hours:
        raise OperatorError(
            f"{settings.settings_file}: [student] keep_hours = {settings.student.keep_hours:g} and [serve] rest_hours = "
            f"{settings.serve.rest_hours:g}: an open conversation would lose its release before it has rested; expected keep_hours "
            "to be the longer one; raise the first or lower the second"
        )
    return settings
