"""The student's checkpoint folder as the servers see it: whether it is whole, and a digest of its weights.

In: a Hugging Face checkpoint folder. Out: an error that says what is missing, or a digest. Never changes the folder and
never reads a tensor.
"""

import json
import logging
import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from conversations.errors import OperatorError, OutsideError
from conversations.serving import digest_of_weights, weight_files

log = logging.getLogger(__name__)


class _KnownDigest(BaseModel):
    folder: str
    files: list[tuple[str, int, int]]
    digest: str


def check_checkpoint(folder: Path) -> None:
    """Raise OperatorError when a folder is not a checkpoint that vLLM and the chat can read."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise OperatorError(
                f"{folder / name}: no such file; expected a Hugging Face checkpoint folder; "
                "set [student] base to one, or make the embedded student with `make env`"
            )
    if not any(folder.glob("*.safetensors")):
        raise OperatorError(
            f"{folder}: no weights in it; expected at least one *.safetensors file; download the checkpoint again, "
            "or make the embedded student anew with `make env`"
        )


def weights_digest(folder: Path, cache_path: Path) -> str:
    """Return the SHA-256 over a checkpoint's configuration and weights, by name and content.

    Reading gigabytes takes a while, so the digest is kept in `cache_path` while names, sizes and times of change stay.
    Raises OutsideError when a file cannot be read.
    """
    paths = weight_files(folder)
    try:
        stats = [path.stat() for path in paths]
        seen = [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)]
        known = _known_digest(cache_path)
        if known is not None and known.folder == str(folder) and known.files == seen:
            return known.digest
        digest = digest_of_weights(folder)
    except OSError as error:
        raise OutsideError(f"{folder}: the checkpoint cannot be read: {error}; mend its permissions or the disk") from None
    _remember(_KnownDigest(folder=str(folder), files=seen, digest=digest), cache_path)
    return digest


def _known_digest(cache_path: Path) -> _KnownDigest | None:
    if not cache_path.is_file():
        return None
    try:
        return _KnownDigest.model_validate_json(cache_path.read_bytes())
    except (OSError, ValidationError) as error:
        log.warning("%s: not readable as a kept digest (%s); reading the weights again", cache_path, type(error).__name__)
        return None


def _remember(known: _KnownDigest, cache_path: Path) -> None:
    half_done = cache_path.with_name(f".{cache_path.name}.{os.getpid()}")
    try:
        half_done.write_text(json.dumps(known.model_dump(), indent=1) + "\n", encoding="utf-8")
        half_done.replace(cache_path)
    except OSError as error:
        log.warning("%s: the digest of the weights cannot be kept: %s", cache_path, error)
