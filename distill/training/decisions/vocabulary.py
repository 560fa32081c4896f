"""Whether a student has an embedding for every token that its tokenizer can make.

In: a checkpoint folder. Out: nothing, or an error before anything is paid or computed. Reads the heads of files, not the weights.
"""

import json
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer

from conversations.errors import OperatorError


def check_vocabulary(base_dir: Path) -> None:
    """Raise OperatorError where the tokenizer has ids beyond the embedding's rows, which would be read out of bounds."""
    tokenizer = Tokenizer.from_file(str(base_dir / "tokenizer.json"))
    token, token_id = max(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1])
    rows = _embedding_rows(base_dir)
    if rows is not None and token_id >= rows:
        raise OperatorError(
            f"{base_dir}: its tokenizer makes the id {token_id} ({token!r}), and its embedding has {rows} rows; expected a row for "
            "every id: tokenizer and weights are of different models; take both from the same one, or enlarge the embedding"
        )


def _embedding_rows(base_dir: Path) -> int | None:
    """Return how many ids the weights know; None where neither the weights nor the configuration say."""
    for path in sorted(base_dir.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no mapping
                if name.endswith("embed_tokens.weight"):
                    return int(weights.get_slice(name).get_shape()[0])
    size = json.loads((base_dir / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    return int(size) if size is not None else None
