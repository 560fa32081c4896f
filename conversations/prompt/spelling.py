"""A tokenizer as the prompt uses it: control tokens by their ids where a mark has them, and every text as text.

In: marks and texts in their order. Out: token ids. A control token that stands in a text is encoded as the characters it is,
and one that swallows the white space beside it (Phi's do) swallows it here too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from conversations.errors import OperatorError
from conversations.prompt.token_bytes import bytes_of_tokens

_CONTROL = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
# What the tokenizers package strips beside a token (Unicode's White_Space); Python's own strip() takes four characters more.
_WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


_LETTERS_JOINED = 4


@dataclass(frozen=True)
class Mark:
    """Part of a chat format, with control tokens spelt out; never a customer's words."""

    text: str


class Spelling:
    """Turns marks and texts into token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._letters_per_token = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
        # A checkpoint can have been saved with its trainer's settings, which would cut what is encoded.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        # Some tokenizers do not call all of their control tokens special: Phi-4-mini's tool marks, Phi-3's `</s>`.
        self.control = {
            token.content: (token_id, token)
            for token_id, token in added.items()
            if token.special or _CONTROL.fullmatch(token.content)
        }
        tokenizer.add_special_tokens([token for _, token in self.control.values()])
        tokenizer.encode_special_tokens = True
        longest_first = sorted(self.control, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self._check_that_text_stays_text()

    def ids(self, *pieces: Mark | str) -> list[int]:
        """Return the token ids of marks and texts that stand in a row; texts side by side are encoded as one."""
        units: list[str | AddedToken] = []
        for piece in pieces:
            for unit in self._units(piece):
                if isinstance(unit, str) and units and isinstance(units[-1], str):
                    units[-1] += unit
                else:
                    units.append(unit)
        ids: list[int] = []
        for place, unit in enumerate(units):
            if isinstance(unit, str):
                ids += self._text(unit, units[:place][-1:], units[place + 1 :][:1])
            else:
                ids.append(self.control[unit.content][0])
        return ids

    def continued(self, opening: Mark, *pieces: Mark | str) -> list[int]:
        """Return the ids of what follows an opening that has been encoded already, as the model goes on behind it."""
        before, whole = self.ids(opening), self.ids(opening, *pieces)
        return whole[len(before) :] if whole[: len(before)] == before else self.ids(*pieces)

    def fewest_tokens(self, text: str) -> int:
        """Return how many tokens a text has at the least, told by its length alone, without cutting it.

        No token stands for more letters than it is spelt with. A tokenizer may compose letters before it cuts them: Unicode's
        composed form (NFC) makes one of four at most. White space at the ends, which some drop, is not counted.
        """
        return len(text.strip()) // (_LETTERS_JOINED * self._letters_per_token)

    def token_bytes(self) -> dict[int, bytes]:
        """Return what each token spells, control tokens left out.

        Raises OperatorError where the tokenizer is neither byte-level nor of SentencePiece's kind.
        """
        return bytes_of_tokens(self._tokenizer, {token_id for token_id, _ in self.control.values()})

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, control tokens left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _units(self, piece: Mark | str) -> list[str | AddedToken]:
        if isinstance(piece, str):
            # A lone surrogate can arrive from JSON and has no UTF-8 form.
            sound = piece.encode("utf-8", "replace").decode("utf-8")
            return [sound] if sound else []
        parts = self._split.split(piece.text) if self._split else [piece.text]
        return [self.control[part][1] if part in self.control else part for part in parts if part]

    def _text(self, text: str, before: Sequence[str | AddedToken], after: Sequence[str | AddedToken]) -> list[int]:
        if any(isinstance(token, AddedToken) and token.rstrip for token in before):
            text = text.lstrip(_WHITE_SPACE)
        if any(isinstance(token, AddedToken) and token.lstrip for token in after):
            text = text.rstrip(_WHITE_SPACE)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _check_that_text_stays_text(self) -> None:
        unknown = self._tokenizer.token_to_id(getattr(self._tokenizer.model, "unk_token", None) or "")
        dangerous = {token_id for token_id, _ in self.control.values()} - {unknown}
        for content in self.control:
            if dangerous.intersection(self._tokenizer.encode(content, add_special_tokens=False).ids):
                raise OperatorError(
                    f"the tokenizer reads the text {content!r} as its control token, so a customer who types it would speak for "
                    "the student; expected a tokenizer that can encode it as text; choose another student"
                )
