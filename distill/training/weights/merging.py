"""An adapter merged into its base: whole weights that need no adapter to be served, and a check that they answer alike.

In: a base's folder, an adapter's folder, and prompts with answers. Out: `merged/`, whole or not at all. The sums are done in
float32 and rounded to bfloat16 once; files are read and written one after the other, so that only one of them is in memory.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from conversations.errors import OperatorError, OutsideError
from conversations.serving import digest_of_weights, read_serving, rope_factors_of
from distill.training.decisions.training_row import TrainingRow
from distill.training.weights.base_student import INDEX_FILE, check_base
from distill.training.weights.card import card_of_merged
from distill.training.weights.change import Change, check_fit, opened_weights, read_changes
from distill.training.weights.folder import complete_checkpoint, note_serving, put_in_place
from distill.training.weights.quiet import without_bars
from distill.training.weights.rope import pin_rope

# The same sums in another order; a wrong scale or a swapped layer is off by far more.
MOST_LOGIT_DIFFERENCE = 1e-3
PROMPTS = 8


@dataclass(frozen=True)
class Agreement:
    """How alike a merged and an unmerged student are, at every token of some answers.

    `max_logit_difference` is that of the float32 sums, which must be rounding alone; `max_logit_difference_rounded` that of the
    bfloat16 weights as written, and `same_token` the share of positions where both find the same token the likeliest.
    """

    prompts: int
    positions: int
    max_logit_difference: float
    max_logit_difference_rounded: float
    same_token: float


def merge_adapter(
    base_dir: Path, adapter_dir: Path, out_dir: Path, rows: Sequence[TrainingRow], *, max_model_len: int, card: str
) -> Agreement:
    """Write base and adapter as one checkpoint in bfloat16, and return how alike it answers.

    rows: decisions whose answers are compared; PROMPTS of them are taken. card: the adapter's README.md.
    Raises OperatorError where the adapter was made for another base or is none that can be merged, where the base is quantised,
    where merged and unmerged logits differ by more than rounding, or where another merge has filled `out_dir` meanwhile;
    OutsideError where the disk did not keep what was computed.
    """
    files = check_base(base_dir)
    serving, base_digest = read_serving(adapter_dir), digest_of_weights(base_dir)
    if serving is not None and serving.base_digest != base_digest:
        raise OperatorError(
            f"{adapter_dir}: it was made for the base {serving.base!r} with the digest {serving.base_digest}, and {base_dir} holds "
            "other weights; set [student] base to the folder that it was trained on"
        )
    changes = read_changes(adapter_dir)
    check_fit(files, changes, base_dir)
    if not rows:
        raise OperatorError(
            f"{adapter_dir}: no row to compare the merged student on; expected at least one decision with an answer"
        )
    replaces = is_taken(out_dir)
    # Two merges that go on at once have two such folders.
    half_done = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.half")
    shutil.rmtree(half_done, ignore_errors=True)
    try:
        half_done.mkdir(parents=True)
    except OSError as error:
        raise OperatorError(
            f"{out_dir}: no folder can be made there ({error}); expected a place in a folder that can be written; name another"
        ) from None
    try:
        _write_merged(files, changes, base_dir, half_done)
        check_written(files, changes, half_done)
        agreement = _agreement(base_dir, adapter_dir, half_done, changes, rows[:PROMPTS], max_model_len)
        complete_checkpoint(base_dir, half_done)
        merged = note_serving(
            base_dir,
            half_done,
            kind="merged",
            max_model_len=max_model_len,
            rank=None,
            dtype="bfloat16",
            base_digest=base_digest,
        )
        (half_done / "README.md").write_text(card_of_merged(card, merged, asdict(agreement)), encoding="utf-8")
        if not replaces and is_taken(out_dir):
            raise OperatorError(
                f"{out_dir}: something has come there while the adapter was merged; expected an empty place; look whether another "
                "merge wrote it, or name another place"
            )
        put_in_place(half_done, out_dir)
    finally:
        shutil.rmtree(half_done, ignore_errors=True)
    return agreement


def check_written(files: Sequence[Path], changes: Mapping[str, Change], folder: Path) -> None:
    """Raise OutsideError unless the files in a folder hold, bit for bit, the base's weights with the changes, in bfloat16.

    files: the base's, whose sums are done anew.
    """
    for path in files:
        written_path = folder / path.name
        try:
            with safe_open(path, framework="pt") as held, safe_open(written_path, framework="pt") as written:
                if set(held.keys()) != set(written.keys()):
                    raise _not_as_computed(written_path, "its names")
                for name in held.keys():  # noqa: SIM118  # the file is no mapping
                    if not _same_bits(_merged(name, held.get_tensor(name), changes), written.get_tensor(name)):
                        raise _not_as_computed(written_path, name)
        except (OSError, SafetensorError) as error:
            raise _not_as_computed(written_path, str(error)) from None


def _not_as_computed(path: Path, where: str) -> OutsideError:
    return OutsideError(
        f"{path}: what was written is not what was computed ({where}); expected the sums of base and adapter, rounded once; check "
        "the disk and the memory of this machine, and merge again"
    )


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    bits, others = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return bool(torch.equal(bits, others))


def _merged(name: str, tensor: torch.Tensor, changes: Mapping[str, Change]) -> torch.Tensor:
    """Return one of the base's tensors with its change, if it has one, in bfloat16; numbers of other kinds stay."""
    if name in changes:
        tensor = changes[name].added_to(tensor)
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def is_taken(place: Path) -> bool:
    """Tell whether something stands where a folder is to appear; an empty folder is nothing."""
    return place.exists() and (not place.is_dir() or any(place.iterdir()))


def _write_merged(files: Sequence[Path], changes: Mapping[str, Change], base_dir: Path, folder: Path) -> None:
    """Write the base's files with the changes in them, one file at a time, in bfloat16."""
    sizes = 0
    for path in files:
        merged: dict[str, torch.Tensor] = {}
        with opened_weights(path) as held:
            for name in held.keys():  # noqa: SIM118  # the file is no mapping
                merged[name] = _merged(name, held.get_tensor(name), changes)
                if not bool(torch.isfinite(merged[name]).all()):
                    raise OperatorError(
                        f"{path}: {name} has values that are no numbers once it is merged; expected finite weights; train anew with a "
                        "lower [train] learning_rate"
                    )
                sizes += merged[name].numel() * merged[name].element_size()
        try:
            save_file(merged, folder / path.name, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise OutsideError(
                f"{folder / path.name}: cannot be written ({error}); free disk space and merge again"
            ) from None
    if (base_dir / INDEX_FILE).is_file():
        index = json.loads((base_dir / INDEX_FILE).read_text(encoding="utf-8"))
        index["metadata"] = {"total_size": sizes}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n", encoding="utf-8")


def _agreement(
    base_dir: Path,
    adapter_dir: Path,
    merged_dir: Path,
    changes: Mapping[str, Change],
    rows: Sequence[TrainingRow],
    max_model_len: int,
) -> Agreement:
    """Compare unmerged, merged in float32 and merged as written; only one of them is in memory at a time.

    The unmerged student is PEFT's reading of the adapter's files, so that two readings of them must agree.
    """
    factors = rope_factors_of(base_dir, max_model_len)

    def opened(folder: Path) -> PreTrainedModel:
        with without_bars():
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        pin_rope(model, factors)
        return model

    base = opened(base_dir)
    with_adapter = PeftModel.from_pretrained(base, adapter_dir).eval()
    unmerged = _logits(with_adapter, rows)
    base = with_adapter.unload()
    with torch.no_grad():
        for name, change in changes.items():
            weight = base.get_parameter(name)
            weight.copy_(change.added_to(weight))
    exact = _logits(base, rows)
    del base, with_adapter
    written = opened(merged_dir)
    is_tied = written.config.tie_word_embeddings
    if is_tied and written.get_output_embeddings().weight is not written.get_input_embeddings().weight:
        raise OperatorError(
            f"{merged_dir}: the merged student's input and output embeddings are two, and the base's are one"
        )
    rounded = _logits(written, rows)
    difference = float((exact - unmerged).abs().max())
    # The comparison is false for what is no number.
    if not difference <= MOST_LOGIT_DIFFERENCE:
        raise OperatorError(
            f"{adapter_dir}: merged into {base_dir.name}, the logits differ by {difference:.3g} from the unmerged student's; expected "
            f"at most {MOST_LOGIT_DIFFERENCE}; serve the adapter unmerged, and report this"
        )
    return Agreement(
        prompts=len(rows),
        positions=unmerged.shape[0],
        max_logit_difference=difference,
        max_logit_difference_rounded=float((rounded - unmerged).abs().max()),
        same_token=float((rounded.argmax(-1) == unmerged.argmax(-1)).float().mean()),
    )


def _logits(model: torch.nn.Module, rows: Sequence[TrainingRow]) -> torch.Tensor:
    """Return the logits at every token of the rows' answers. Shape: (tokens, vocabulary)."""
    found = []
    with torch.no_grad():
        for row in rows:
            read = torch.tensor([[*row.prompt_ids, *row.answer_ids[:-1]]])
            found.append(model(input_ids=read, logits_to_keep=len(row.answer_ids), use_cache=False).logits[0].float())
    return torch.cat(found)
