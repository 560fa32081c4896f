"""Small tokenizers of each kind, trained on a few lines: byte-level BPE, SentencePiece's BPE with bytes to fall back on, bytes."""

import json
from typing import Literal

from tiny_student import CONTROL_TOKENS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from conversations.prompt import ChatFormat, Renderer
from conversations.prompt.marks import MARKS
from conversations.prompt.spelling import Spelling

Kind = Literal["byte-level", "sentencepiece", "bytes"]
LINES = (
    "Please wait 12 minutes, then restart the box.",
    "The light glows coral while the box is restarting; that is normal.",
    "We refund the refundable part and return the rest within 14 days.",
    "You can reset the password in the app: settings, network, password.",
)


def small_tokenizer(kind: Kind, *, size: int = 340, first_line: int = 0) -> Tokenizer:
    """Another `first_line` or size gives other merges, and so another way to cut the same text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = LINES[first_line:]
    if kind == "bytes":
        vocabulary = {token: number for number, token in enumerate((*CONTROL_TOKENS, *alphabet))}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    elif kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if kind == "sentencepiece":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=256 + size - 200, special_tokens=["<unk>", *CONTROL_TOKENS, *bytes_], show_progress=False
        )
        tokenizer.train_from_iterator([word for line in lines for word in line.split(" ")], trainer)
        # Trained as special tokens, so that they have the numbers that SentencePiece gives them; but they are not control tokens.
        tokenizer = _without_special(tokenizer, bytes_)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if kind == "byte-level":
            trainer = trainers.BpeTrainer(
                vocab_size=size, special_tokens=list(CONTROL_TOKENS), initial_alphabet=alphabet, show_progress=False
            )
            tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return tokenizer


def renderer_of(tokenizer: Tokenizer) -> Renderer:
    return Renderer(Spelling(tokenizer), ChatFormat.CHATML, MARKS[ChatFormat.CHATML], "small")


def _without_special(tokenizer: Tokenizer, tokens: list[str]) -> Tokenizer:
    held = json.loads(tokenizer.to_str())
    held["added_tokens"] = [each for each in held["added_tokens"] if each["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(held))
