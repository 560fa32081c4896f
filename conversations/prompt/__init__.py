"""What a student reads: the one place where a conversation becomes token ids, for serving and for training alike.

In: the turns of a conversation. Out: the redacted messages that a model reads (`turns`), and their token ids (`renderer`) by the
marks of the student's chat format (`marks`, or `own_template` where it is none of the known ones), checked against the student's
`chat_template`. Control tokens are inserted by id and every text is encoded as text (`spelling`), so a customer who types
`<|im_end|>` stays text. Uses the light `tokenizers` package only; it must never load a model library, and nothing else may build
a prompt.
"""

from conversations.prompt.marks import ChatFormat
from conversations.prompt.renderer import PROMPT_VERSION, Prompt, PromptTooLong, Renderer, RoleUnknown
from conversations.prompt.turns import SpokenTurn, digest_of_settings, messages_for_model

__all__ = [
    "PROMPT_VERSION",
    "ChatFormat",
    "Prompt",
    "PromptTooLong",
    "Renderer",
    "RoleUnknown",
    "SpokenTurn",
    "digest_of_settings",
    "messages_for_model",
]
