"""What trained weights say of how they must be served: `serving.json` beside them, and the rule for LongRoPE's factors.

In: a checkpoint's `config.json`, and the folder of trained weights. Out: facts, and sentences that say what does not fit. Training
writes them and serving holds to them, so that a student is never served otherwise than it was trained. Reads no tensor.
"""

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from conversations.errors import OperatorError
from conversations.messages import Json

SERVING_FILE = "serving.json"
_LONGROPE_NAMES = ("longrope", "su")


class RopeFactors(StrEnum):
    """Which of LongRoPE's two sets of factors turn the positions of every token; none in a model without LongRoPE."""

    NONE = "none"
    SHORT = "short"
    LONG = "long"


class Serving(BaseModel):
    """How trained weights are to be served.

    `rank` is the adapter's, None where there is none. `max_model_len` is the server's, as it was when they were trained.
    `prompt_digest` is the renderer's, empty where the weights do not say it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["lora", "merged", "full"]
    base: str
    base_digest: str
    tokenizer_digest: str
    prompt_digest: str = ""
    max_model_len: int
    rope_factors: RopeFactors
    rank: int | None
    dtype: str


class Served(BaseModel):
    """What a running server serves, as far as trained weights must fit it."""

    model_config = ConfigDict(frozen=True)

    base_digest: str
    tokenizer_digest: str
    prompt_digest: str
    max_model_len: int
    rope_factors: RopeFactors
    max_lora_rank: int


def why_unfit(serving: Serving, served: Served) -> str:
    """Return why an adapter cannot be served there as it was trained, or an empty string."""
    if serving.base_digest != served.base_digest:
        return f"it was made on weights with the digest {serving.base_digest}; this server's have {served.base_digest}"
    if serving.tokenizer_digest != served.tokenizer_digest:
        return f"it was taught with the tokenizer {serving.tokenizer_digest}; this server's is {served.tokenizer_digest}"
    if serving.prompt_digest and serving.prompt_digest != served.prompt_digest:
        return (
            f"it was taught on prompts with the digest {serving.prompt_digest}; this chat writes its students' with the digest "
            f"{served.prompt_digest}"
        )
    if serving.rank is not None and serving.rank > served.max_lora_rank:
        return (
            f"its rank is {serving.rank}, above this server's [student] max_lora_rank = {served.max_lora_rank}; raise that"
        )
    if serving.rope_factors is not served.rope_factors:
        return (
            f"it was trained with the {serving.rope_factors} LongRoPE factors (max_model_len {serving.max_model_len}); this server "
            f"has the {served.rope_factors} ones (max_model_len {served.max_model_len})"
        )
    return ""


def rope_factors(config: Mapping[str, Json], max_model_len: int, *, place: Path) -> RopeFactors:
    """Return the factors that vLLM gives a model, once and for every length, by the longest context that it is to serve.

    transformers chooses anew in each forward pass, by the longest row in it; a student that is trained with one set and served
    with the other is another model. `place` is named in errors.
    Raises OperatorError for LongRoPE without the length it begins at.
    """
    table = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(table, dict) or table.get("rope_type", table.get("type")) not in _LONGROPE_NAMES:
        return RopeFactors.NONE
    original = table.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if not isinstance(original, int):
        raise OperatorError(
            f"{place}: it has LongRoPE and no original_max_position_embeddings, so that nobody can tell which factors serve; expected "
            "the number of tokens at which the long factors begin; take config.json from the model's publisher"
        )
    return RopeFactors.LONG if max_model_len > original else RopeFactors.SHORT


def rope_factors_of(student_dir: Path, max_model_len: int) -> RopeFactors:
    """Return the factors of the student in a checkpoint folder, served with contexts of up to `max_model_len` tokens."""
    path = student_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{path}: cannot be read: {error}; expected the configuration of a Hugging Face checkpoint; download it again"
        ) from None
    return rope_factors(config, max_model_len, place=path)


def digest_of_tokenizer(student_dir: Path) -> str:
    """Return the digest of the file that decides every token id."""
    return "sha256:" + hashlib.sha256((student_dir / "tokenizer.json").read_bytes()).hexdigest()


def digest_of_weights(student_dir: Path) -> str:
    """Return the SHA-256 over a checkpoint's configuration and weights, by name and content. Reads every byte of them."""
    whole = hashlib.sha256()
    for path in weight_files(student_dir):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def weight_files(student_dir: Path) -> list[Path]:
    """Return the files that a checkpoint's digest covers."""
    return sorted([student_dir / "config.json", *student_dir.glob("*.safetensors")])


def write_serving(folder: Path, serving: Serving) -> None:
    """Write `serving.json` into a folder of weights that is being made."""
    (folder / SERVING_FILE).write_text(serving.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_serving(folder: Path) -> Serving | None:
    """Return how the weights in a folder are to be served; None where they do not say.

    Raises OperatorError where the file is damaged.
    """
    path = folder / SERVING_FILE
    if not path.is_file():
        return None
    try:
        return Serving.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise OperatorError(
            f"{path}: cannot be read: {type(error).__name__}; expected what `distill train` wrote there; train or merge again"
        ) from None
