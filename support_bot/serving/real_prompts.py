"""A release is asked what customers asked last, before any customer is sent to it.

In: the record, and a server that has just loaded a release. Out: why the release cannot be used, or nothing. The prompts are made
as the chat makes them, redacted, and nothing that is answered is kept.
"""

import math
from dataclasses import dataclass

from conversations import turns
from conversations.errors import OutsideError
from conversations.messages import Role, TurnStatus
from conversations.prompt import PromptTooLong, Renderer, RoleUnknown, SpokenTurn, messages_for_model
from conversations.settings import PromptTable, RedactionTable
from conversations.store import Record
from support_bot.vllm_api import VllmApi

PROMPTS = 2
ANSWER_TOKENS = 8
_GREETING = SpokenTurn(Role.USER, TurnStatus.COMPLETE, "Hello, can you help me?")


@dataclass(frozen=True)
class RealPrompts:
    """Where prompts come from, and how the chat writes them."""

    record: Record
    renderer: Renderer
    prompt: PromptTable
    redaction: RedactionTable

    def newest(self) -> list[tuple[int, ...]]:
        """Return the newest customers' questions with what was said before them, as token ids; a greeting where there are none."""
        found = []
        for question in turns.newest_questions(self.record, PROMPTS):
            thread = turns.branch_to(turns.all_turns(self.record, question.conversation_id), question.turn_id)
            found.append([SpokenTurn(each.role, each.status, each.content, each.extra_json) for each in thread])
        prompts = []
        for spoken in [*found, [_GREETING]][:PROMPTS]:
            messages, _ = messages_for_model(spoken, system_prompt=self.prompt.system, rules=self.redaction.rules)
            try:
                prompt = self.renderer.prompt(messages, max_prompt_tokens=self.prompt.max_prompt_tokens)
            except (PromptTooLong, RoleUnknown):
                # The chat would not ask it either.
                continue
            prompts.append(prompt.token_ids)
        return prompts

    async def why_unusable(self, api: VllmApi, release_id: str, prompts: list[tuple[int, ...]]) -> str:
        """Ask a server's release the prompts, and return what is wrong with its answers, or an empty string.

        One question may well be answered by nothing; all of them may not.
        """
        said = False
        for prompt in prompts:
            try:
                answer = await api.complete(
                    release_id, prompt, max_tokens=ANSWER_TOKENS, stop_token_ids=self.renderer.stop_ids
                )
            except OutsideError as error:
                return f"it failed on a real prompt: {error}"
            if not answer.token_logprobs or not all(map(_is_finite, answer.token_logprobs)):
                return "its answer to a real prompt is garbage: the log-probability of a token is no number; train anew"
            said = said or bool(answer.text.strip())
        if prompts and not said:
            return f"it answered {len(prompts)} real prompts without one word; train anew, or look at what it was taught"
        return ""


def _is_finite(logprob: float | None) -> bool:
    return logprob is not None and math.isfinite(logprob)
