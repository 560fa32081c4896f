"""A scripted teacher's replies with log-probabilities, in the two dialects: OpenAI's, and vLLM's as version 0.32 was heard."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scripted_teacher import Act

# A token that was said, with what else could have been, and how likely: {" the": 0.6, " a": 0.1}.
Spoken = tuple[str, Mapping[str, float]]


def entry(token: str, probability: float, *, spelt: Sequence[int] | None = None) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": math.log(probability),
        "bytes": list(token.encode()) if spelt is None else list(spelt),
    }


def token_of(said: str, choices: Mapping[str, float]) -> dict[str, Any]:
    return {**entry(said, choices[said]), "top_logprobs": [entry(*choice) for choice in choices.items()]}


def believing(words: Sequence[Spoken], *, end: str = "<|im_end|>") -> Act:
    """A reply in vLLM's manner, whose last token is the end of the turn; without `end` in OpenAI's, which does not tell of it."""
    text = "".join(said for said, _ in words)
    content = [token_of(*word) for word in words]
    if end:
        content.append(token_of(end, {end: 0.9, "\n": 0.05}))
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": content}}
    return Act(text, more={"choices": [choice]})


def spoken(text: str, *, sure: float = 0.7) -> list[Spoken]:
    """A text word by word, each as likely as the teacher is sure; beside it the word in capitals and a comma."""
    words = [text.split(" ")[0], *(f" {word}" for word in text.split(" ")[1:])]
    return [(word, {word: sure, word.upper() + "!": (1 - sure) / 2, ",": (1 - sure) / 4}) for word in words]


# What vLLM 0.32 answers for characters that are cut over several tokens: empty until the last of them. Numbers as they came.
VLLM_CUT_CHARACTERS = [
    {"token": ":", "logprob": -0.2099502682685852, "bytes": [58], "top_logprobs": [
        {"token": ":", "logprob": -0.2099502682685852, "bytes": [58]}, {"token": " ", "logprob": -3.0849502086639404, "bytes": [32]}]},
    {"token": "", "logprob": -1.3516757488250732, "bytes": [], "top_logprobs": [
        {"token": "", "logprob": -1.3516757488250732, "bytes": []}, {"token": "", "logprob": -1.9141757488250732, "bytes": []},
        {"token": "\n", "logprob": -2.976675748825073, "bytes": [10]}]},
    {"token": " 😀", "logprob": -0.028249740600585938, "bytes": [32, 240, 159, 152, 128], "top_logprobs": [
        {"token": " 😀", "logprob": -0.028249740600585938, "bytes": [32, 240, 159, 152, 128]},
        {"token": " 😁", "logprob": -4.153249740600586, "bytes": [32, 240, 159, 152, 129]}]},
    {"token": "<|im_end|>", "logprob": -0.5, "bytes": list(b"<|im_end|>"), "top_logprobs": [
        {"token": "<|im_end|>", "logprob": -0.5, "bytes": list(b"<|im_end|>")},
        {"token": "<|im_start|>", "logprob": -2.0, "bytes": list(b"<|im_start|>")},
        {"token": "<|endoftext|>", "logprob": -1.5, "bytes": list(b"<|endoftext|>")}]},
]  # fmt: skip
