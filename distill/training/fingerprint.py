"""Everything that decides what a training ends with, by name, so that one goes on only as it was begun.

In: what is asked for. Out: digests, versions and settings as text. Loads no weights.
"""

from importlib import metadata
from pathlib import Path

from conversations.prompt import Renderer
from conversations.serving import digest_of_tokenizer, digest_of_weights, rope_factors_of
from distill.rows import rows_gone
from distill.run import file_digest
from distill.training.decisions.reading import READING_VERSION
from distill.training.fitting.checkpoint import Fingerprint
from distill.training.processes.group import Group
from distill.training.request import TrainRequest
from distill.training.student.learning import precision_of
from distill.training.weights.base_student import check_base

# Settings that change nothing in what is learnt. The number of processes counts as it is, not as it was asked for.
_WITHOUT_EFFECT = ("checkpoint_every_steps", "processes", "nice")
# The entry of the base student's weights, which others name too.
BASE = "base"
# A teacher is known by its digest, wherever its folder stands.
PLACES = {"local_teacher": {"path"}}


def digest_of_base(base_dir: Path) -> str:
    """Return the digest of a student's weights and configuration.

    Raises OperatorError where the folder holds no causal language model that can be trained.
    """
    check_base(base_dir)
    return digest_of_weights(base_dir)


def fingerprint_of(request: TrainRequest, group: Group) -> Fingerprint:
    """Return, by name, everything that decides what a training ends with.

    How often a checkpoint is written is not among it. How many processes train is: their sums are added in another order.
    Raises OperatorError where the base or a file of rows is not there.
    """
    teacher = request.settings.local_teacher
    told = request.settings.model_dump(exclude=PLACES)
    settings = {name: value for name, value in told.items() if name not in _WITHOUT_EFFECT}
    return {
        BASE: digest_of_base(request.base_dir),
        "chat template": Renderer.load(request.base_dir).digest,
        "prompt rules": READING_VERSION,
        "tokenizer": digest_of_tokenizer(request.base_dir),
        "train rows": _digest(request.train_path),
        "validation rows": _digest(request.validation_path),
        "soft labels": _digest(request.beliefs_learnt),
        "local teacher": digest_of_base(teacher.path) if teacher else "none",
        "replayed rows": _digest(request.replay_path),
        "release that learns on": f"{request.start.release_id} {request.start.weights_digest}" if request.start else "none",
        "rope factors": rope_factors_of(request.base_dir, request.max_model_len).value,
        "[student] max_model_len": str(request.max_model_len),
        "[prompt] max_prompt_tokens": str(request.max_prompt_tokens),
        "device": f"{group.device.type} in {precision_of(group.device)}",
        "number of processes": str(group.size),
        **{f"version of {name}": metadata.version(name) for name in ("torch", "transformers", "peft")},
        **{f"[train] {name}": str(value) for name, value in settings.items()},
    }


def _digest(path: Path | None) -> str:
    if path is None:
        return "none"
    try:
        return file_digest(path)
    except FileNotFoundError:
        raise rows_gone(path) from None
