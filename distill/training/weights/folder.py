"""A folder of weights that is being made: what stands beside them so that vLLM serves them as they are, and how it appears.

In: the base's folder and a folder that is not there yet under its name. Out: the tokenizer, the stops and how to serve, and a
folder that is on the disk whole or not at all. Writes no weights and no place of a folder.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Literal

from conversations.messages import Json
from conversations.prompt import Renderer
from conversations.serving import Serving, digest_of_tokenizer, rope_factors_of, write_serving

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip
_GENERATION_FILE = "generation_config.json"


def complete_checkpoint(base_dir: Path, folder: Path) -> None:
    """Put the base's tokenizer, chat template and generation settings beside whole weights, with every token that ends a turn."""
    for name in _TOKENIZER_FILES:
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, folder / name)
    path = base_dir / _GENERATION_FILE
    generation: dict[str, Json] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = generation.get("eos_token_id")
    ends = [*Renderer.load(base_dir).stop_ids, *(known if isinstance(known, list) else [known])]
    generation["eos_token_id"] = [*sorted({token for token in ends if isinstance(token, int)})]
    (folder / _GENERATION_FILE).write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def note_serving(
    base_dir: Path,
    folder: Path,
    *,
    kind: Literal["lora", "merged", "full"],
    max_model_len: int,
    rank: int | None,
    dtype: str,
    base_digest: str,
) -> Serving:
    """Write and return how the weights in a folder are to be served. base_digest: `digest_of_weights` of the base."""
    serving = Serving(
        kind=kind,
        base=base_dir.name,
        base_digest=base_digest,
        tokenizer_digest=digest_of_tokenizer(base_dir),
        prompt_digest=Renderer.load(base_dir).digest,
        max_model_len=max_model_len,
        rope_factors=rope_factors_of(base_dir, max_model_len),
        rank=rank,
        dtype=dtype,
    )
    write_serving(folder, serving)
    return serving


def put_in_place(half_done: Path, folder: Path) -> None:
    """Make a finished folder appear under its name in one step; an earlier one of that name goes."""
    settle(half_done)
    shutil.rmtree(folder, ignore_errors=True)
    half_done.rename(folder)


def settle(folder: Path) -> None:
    """Make a folder's files readable for everybody, and return when they are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            # safetensors writes for the owner alone, but the chat and vLLM may run as other users.
            path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
