"""Everything that decides what a training ends with, by name, so that one goes on only as it was begun.

In: what is asked for. Out: digests, versions and settings as text. Loads no weights.
"""

import hashlib
from importlib import metadata
from pathlib import Path

from conversations.errors import OperatorError
from distill.run import file_digest
from distill.training.checkpoint import Fingerprint
from distill.training.request import TrainRequest
from distill.training.student import device_at_hand, precision_of

# A teacher is known by its digest, wherever its folder stands.
PLACES = {"local_teacher": {"path"}}


def digest_of_base(base_dir: Path) -> str:
    """Return the digest of a student's weights, configuration and tokenizer.

    Raises OperatorError where the folder holds no weights.
    """
    weights = sorted(base_dir.glob("*.safetensors"))
    if not weights or not (base_dir / "config.json").is_file():
        raise OperatorError(
            f"{base_dir}: no config.json and *.safetensors there; expected a Hugging Face checkpoint folder; "
            f"set [student] base to one, or make the embedded student with `distill unpack-student`"
        )
    digest = hashlib.sha256()
    for path in [*weights, base_dir / "config.json", base_dir / "tokenizer.json"]:
        if path.is_file():
            digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return "sha256:" + digest.hexdigest()


def fingerprint_of(request: TrainRequest) -> Fingerprint:
    """Return, by name, everything that decides what a training ends with."""
    device, teacher = device_at_hand(), request.settings.local_teacher
    return {
        "base": digest_of_base(request.base_dir),
        "train rows": file_digest(request.train_path),
        "validation rows": file_digest(request.validation_path) if request.validation_path else "none",
        "soft labels": file_digest(request.beliefs_learnt) if request.beliefs_learnt else "none",
        "local teacher": digest_of_base(teacher.path) if teacher else "none",
        "[prompt] max_prompt_tokens": str(request.max_prompt_tokens),
        "device": f"{device.type} in {precision_of(device)}",
        **{f"version of {name}": metadata.version(name) for name in ("torch", "transformers", "peft")},
        **{f"[train] {name}": str(value) for name, value in request.settings.model_dump(exclude=PLACES).items()},
    }
