"""What each token of a tokenizer spells, as bytes: the one thing that tokenizers have in common.

In: a tokenizer. Out: bytes by token id. Knows byte-level tokenizers (GPT-2 and after: Llama 3, Phi-4-mini, SmolLM2) and
SentencePiece ones (Llama 2, Phi-3). Control tokens spell nothing and are not among them.
"""

import json
import re
from collections.abc import Collection

from tokenizers import Tokenizer

from conversations.errors import OperatorError

_SPACE = "\u2581"
_ONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def bytes_of_tokens(tokenizer: Tokenizer, control_ids: Collection[int]) -> dict[int, bytes]:
    """Return the bytes of each token that is no control token, by its id.

    Raises OperatorError for a tokenizer of another kind.
    """
    # A decoder tells how it is made only as the JSON that it is stored as.
    decoder = json.dumps(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder is not None else ""
    if "ByteLevel" in decoder:
        byte_of = {character: bytes([byte]) for byte, character in _byte_level().items()}
    elif _SPACE in decoder or "\\u2581" in decoder or "Metaspace" in decoder:
        byte_of = None
    else:
        raise OperatorError(
            f"the student's tokenizer decodes by {decoder or 'nothing'}; soft labels can be put to byte-level and "
            "SentencePiece tokenizers alone; set [train] soft_weight to 0, or choose a student with one of them"
        )
    added = tokenizer.get_added_tokens_decoder()
    spelt: dict[int, bytes] = {}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id in control_ids:
            continue
        if token_id in added:
            spelt[token_id] = token.encode()
        elif byte_of is None:
            one = _ONE_BYTE.fullmatch(token)
            spelt[token_id] = bytes.fromhex(one[1]) if one else token.replace(_SPACE, " ").encode()
        else:
            spelt[token_id] = b"".join(byte_of.get(character, character.encode()) for character in token)
    return spelt


def _byte_level() -> dict[int, str]:
    """Return how byte-level tokenizers write each byte (Radford et al. 2019): itself where it is visible, else a letter above."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}
