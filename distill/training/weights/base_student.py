"""Whether a folder holds a student that can be trained and merged: said before anything is loaded, and with what is missing.

In: a checkpoint folder. Out: the files of its weights, or an error that says what to do. Reads no tensor.
"""

import json
from pathlib import Path
from typing import cast

from conversations.errors import OperatorError
from conversations.messages import Json

INDEX_FILE = "model.safetensors.index.json"
_CAUSAL = ("ForCausalLM", "LMHeadModel")


def check_base(base_dir: Path) -> list[Path]:
    """Return the files of a student's weights, in order.

    Raises OperatorError where the folder holds no whole causal language model, or one whose weights are quantised.
    """
    config = _read(base_dir / "config.json", base_dir)
    architectures = [str(name) for name in cast(list[Json], config.get("architectures") or [])]
    if architectures and not any(name.endswith(_CAUSAL) for name in architectures):
        raise _unfit(base_dir, f"its config.json says {', '.join(architectures)}, which is no causal language model")
    quantisation = config.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
        raise OperatorError(
            f"{base_dir}: its weights are quantised ({method}), and an answer learnt on rounded weights is merged into none; "
            "expected weights in bfloat16, float16 or float32; set [student] base to the checkpoint that was quantised"
        )
    if (base_dir / INDEX_FILE).is_file():
        index = _read(base_dir / INDEX_FILE, base_dir)
        named = sorted({str(name) for name in cast(dict[str, Json], index.get("weight_map") or {}).values()})
        missing = [name for name in named if not (base_dir / name).is_file()]
        if missing or not named:
            raise _unfit(
                base_dir, f"{INDEX_FILE} names {len(named)} files, and these are missing: {', '.join(missing) or 'all'}"
            )
        return [base_dir / name for name in named]
    weights = sorted(base_dir.glob("*.safetensors"))
    if not weights:
        raise _unfit(base_dir, "no config.json and *.safetensors there")
    return weights


def _read(path: Path, base_dir: Path) -> dict[str, Json]:
    if not path.is_file():
        raise _unfit(base_dir, f"no {path.name} and *.safetensors there")
    try:
        held: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _unfit(base_dir, f"{path.name} is no JSON ({error})") from None
    if not isinstance(held, dict):
        raise _unfit(base_dir, f"{path.name} holds no object")
    return held


def _unfit(base_dir: Path, why: str) -> OperatorError:
    return OperatorError(
        f"{base_dir}: {why}; expected a Hugging Face checkpoint folder of a causal language model; set [student] base to one, "
        "or make the embedded student with `distill unpack-student`"
    )
