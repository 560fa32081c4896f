"""The rows that training is measured on: every decision of multi-turn conversations, each on its logged history.

In: real conversations beside the project where they are, or nothing. Out: rows of token ids. The teacher's answer to a question
is another conversation's reply, as a teacher's words are not those that were logged, and what follows builds on the logged ones.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from distill.training.decisions.training_row import TrainingRow

DATA = Path(__file__).parents[2] / "../shared/data"
SOURCES = ("doc2dial_support.jsonl", "sgd_services.jsonl", "ubuntu_irc_support.jsonl")
SYSTEM = "You are the support assistant of a home-internet provider. Answer in a few plain sentences, from what you know."
# Mean and spread of the logarithm of their lengths in tokens, as the real conversations have them; see `lengths`.
QUESTION, REPLY = (2.45, 0.6), (2.95, 0.65)
SYSTEM_TOKENS = 32
Exchange = tuple[tuple[int, ...], tuple[int, ...]]


def rows_of(turns: int, conversations: int, *, student: Path | None, vocabulary: int) -> list[TrainingRow]:
    """Return the decisions of some conversations of so many turns, drawn by a fixed seed.

    student: the folder whose chat format renders them; None, or no data: token ids of like lengths, drawn at random.
    """
    if student is not None:
        found = _real(turns)
        if len(found) > conversations:
            return _rendered(random.Random(turns).sample(found, conversations + 1), turns, student)
        print(f"{DATA} is absent: rows of like lengths are drawn at random", file=sys.stderr)
    return list(_drawn(turns, conversations, vocabulary))


def _real(turns: int) -> list[list[tuple[str, str]]]:
    """Return the question and reply of each exchange of every conversation with enough of them."""
    found = []
    for source in SOURCES:
        if not (DATA / source).is_file():
            continue
        for line in (DATA / source).read_text(encoding="utf-8").splitlines():
            exchanges, asked = [], ""
            for message in json.loads(line)["messages"]:
                if message["role"] == "user":
                    asked = message["content"]
                elif message["role"] == "assistant" and asked:
                    exchanges.append((asked, message["content"]))
                    asked = ""
            if len(exchanges) >= turns:
                found.append(exchanges[:turns])
    return found


def _rendered(found: list[list[tuple[str, str]]], turns: int, student: Path) -> list[TrainingRow]:
    from conversations.messages import ChatMessage, Role
    from conversations.prompt import Renderer

    renderer = Renderer.load(student)
    rows = []
    for number, exchanges in enumerate(found[:-1]):
        messages = [ChatMessage(Role.SYSTEM, SYSTEM)]
        for turn in range(turns):
            asked, replied = exchanges[turn]
            messages.append(ChatMessage(Role.USER, asked))
            prompt = renderer.prompt(messages, max_prompt_tokens=2000)
            taught = renderer.answer(found[number + 1][turn][1])
            rows.append(TrainingRow(f"{number}.{turn}", f"{number:03d}", prompt.token_ids, taught))
            messages.append(ChatMessage(Role.ASSISTANT, replied))
    return rows


def _drawn(turns: int, conversations: int, vocabulary: int) -> Iterator[TrainingRow]:
    chance = random.Random(turns)

    def text(shape: tuple[float, float]) -> tuple[int, ...]:
        return tuple(chance.randrange(3, vocabulary) for _ in range(4 + min(200, round(chance.lognormvariate(*shape)))))

    system = tuple(chance.randrange(3, vocabulary) for _ in range(SYSTEM_TOKENS))
    for number in range(conversations):
        read = system
        for turn in range(turns):
            read += text(QUESTION)
            yield TrainingRow(f"{number}.{turn}", f"{number:03d}", read, text(REPLY))
            read += text(REPLY)
