"""What a pasted book costs: a message that cannot fit is told by its length, before it is cut into tokens."""

from pathlib import Path

import pytest

from conversations.messages import ChatMessage, Role
from conversations.prompt import PromptTooLong, Renderer
from conversations.prompt.spelling import Spelling
from tests.conversations.made_tokenizers import CHATML, PHI3_MINI, Made

BOOK = ChatMessage(Role.USER, "Where is my box? " * 60_000)


class WatchedSpelling(Spelling):
    """Notes the longest text that is cut into tokens."""

    longest = 0

    def ids(self, *pieces):
        self.longest = max(self.longest, *(len(piece) for piece in pieces if isinstance(piece, str)), 0)
        return super().ids(*pieces)


def watched(renderer: Renderer) -> WatchedSpelling:
    spelling = renderer._spelling
    spelling.__class__ = WatchedSpelling
    assert isinstance(spelling, WatchedSpelling)
    return spelling


@pytest.mark.parametrize("made", [CHATML, PHI3_MINI], ids=lambda made: made.name)
def test_a_message_that_cannot_fit_by_its_length_is_dropped_without_being_cut(tmp_path: Path, made: Made) -> None:
    renderer = Renderer.load(made.write(tmp_path / "student"))
    spelling = watched(renderer)
    later = [ChatMessage(Role.ASSISTANT, "On shelf 2."), ChatMessage(Role.USER, "Thanks.")]
    prompt = renderer.prompt([ChatMessage(Role.SYSTEM, "Be kind."), BOOK, *later], max_prompt_tokens=200)
    alone = renderer.prompt([ChatMessage(Role.SYSTEM, "Be kind."), *later], max_prompt_tokens=200)
    assert (prompt.token_ids, prompt.dropped_messages) == (alone.token_ids, 1)
    with pytest.raises(PromptTooLong, match=r"the last message has 1020000 letters; 200 tokens are allowed"):
        renderer.prompt([*later, BOOK], max_prompt_tokens=200)
    assert spelling.longest < 100


@pytest.mark.parametrize("made", [CHATML, PHI3_MINI], ids=lambda made: made.name)
@pytest.mark.parametrize(
    "text", ["box", " " * 5000, "ᾂ" * 300, "α\u0313\u0300\u0345" * 300, "한" * 300, BOOK.content[:5000]]
)
def test_no_text_takes_fewer_tokens_than_its_length_says(tmp_path: Path, made: Made, text: str) -> None:
    spelling = Renderer.load(made.write(tmp_path / "student"))._spelling
    assert spelling.fewest_tokens(text) <= len(spelling.ids(text))
