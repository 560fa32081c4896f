"""A teacher whose weights are on this machine: it reads what the student reads, and tells all that it believes.

In: a checkpoint folder with the student's own tokenizer. Out: for a micro-batch its states before the output head, and what one
of its attention layers projects. It never learns, and is refused where its token ids would mean other words than the student's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from conversations.errors import OperatorError
from conversations.serving import rope_factors_of
from distill.settings import LocalTeacherTable
from distill.training.batches.packing import Batch
from distill.training.losses.head import TeacherStates
from distill.training.losses.relations import AttentionWatch, Projections
from distill.training.student import attention
from distill.training.student.forward import Forward, proven_forward
from distill.training.weights.quiet import without_bars
from distill.training.weights.rope import pin_rope

# How many tokens that differ an error names.
_NAMED = 3


@dataclass(frozen=True)
class TeacherView:
    """What the teacher makes of a micro-batch; `projections` are None where its relations are not learnt."""

    states: TeacherStates
    projections: Projections | None


class LocalTeacher:
    """A frozen model that tells what it believes. Made by `open_local_teacher`."""

    def __init__(self, forward: Forward, table: LocalTeacherTable) -> None:
        """Raise OperatorError where the model has no such layer, or relations cannot be taken from it."""
        self._forward = forward
        model = forward.model.requires_grad_(False).eval()
        self._head = model.get_output_embeddings().weight
        self._watch: AttentionWatch | None = None
        if table.relations_weight:
            self._watch = _watch(model, table.teacher_layer, table, whose="teacher")

    def beliefs(self, batch: Batch) -> TeacherView:
        """Return what the teacher makes of a micro-batch that is on its device."""
        with torch.no_grad():
            if self._watch is None:
                return TeacherView(self._states(batch), None)
            with self._watch.watching():
                states = self._states(batch)
            return TeacherView(states, self._watch.take())

    def _states(self, batch: Batch) -> TeacherStates:
        hidden = self._forward.hidden(batch)
        return TeacherStates(hidden.reshape(-1, hidden.shape[-1])[batch.scored_at], self._head)


def open_local_teacher(table: LocalTeacherTable, *, student: Forward, student_dir: Path, max_model_len: int) -> LocalTeacher:
    """Load the teacher of the settings onto the student's device, in the number format of the student's base.

    It turns positions as in contexts of `max_model_len` tokens.

    Raises OperatorError where it cannot be loaded, reads other token ids than the student, would teach nothing, or has logits that are
    not those of its output head on its states.
    """
    if not table.logits_weight and not table.relations_weight:
        raise OperatorError(
            "[train.local_teacher]: logits_weight and relations_weight are both 0, so that it would teach nothing; "
            "set one of them, or leave the table out"
        )
    check_same_tokenizer(student_dir, table.path)
    weight = student.model.get_output_embeddings().weight
    try:
        with without_bars():
            model = AutoModelForCausalLM.from_pretrained(
                table.path, local_files_only=True, dtype=weight.dtype, attn_implementation="sdpa"
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise OperatorError(
            f"[train.local_teacher] path = {str(table.path)!r}: cannot be loaded as a teacher: {error}; expected a Hugging Face "
            "checkpoint folder of a causal language model; put it there again, or leave the table out"
        ) from error
    theirs, ours = model.get_output_embeddings().weight.shape[0], weight.shape[0]
    if theirs != ours:
        raise OperatorError(
            f"[train.local_teacher] path = {str(table.path)!r}: its output head has {theirs} entries and the student's {ours}; "
            "expected one vocabulary for both; take a teacher of the student's family"
        )
    pin_rope(model, rope_factors_of(table.path, max_model_len))
    # Micro-batches are laid out in whole blocks only where the student's attention skips blocks.
    by_blocks = student.masks == "blocks" and attention.skips_blocks(weight.device, model.config)
    return LocalTeacher(proven_forward(model.to(weight.device), table.path, by_blocks=by_blocks, half=False), table)


def check_same_tokenizer(student_dir: Path, teacher_dir: Path) -> None:
    """Raise OperatorError, naming the difference, where the same ids are not the same tokens for both."""
    if not (teacher_dir / "config.json").is_file():
        raise OperatorError(
            f"[train.local_teacher] path = {str(teacher_dir)!r}: no checkpoint folder is there; expected the weights of a teacher on "
            "this machine; of one behind an API or vLLM learn its log-probabilities ([teachers.NAME] top_logprobs, [train] "
            "soft_weight) and leave [train.local_teacher] out"
        )
    path = teacher_dir / "tokenizer.json"
    if not path.is_file():
        raise OperatorError(f"{path}: no such file; expected the teacher's tokenizer beside its weights; put it there")
    ours, theirs = (
        {token_id: token for token, token_id in Tokenizer.from_file(str(each)).get_vocab(with_added_tokens=True).items()}
        for each in (student_dir / "tokenizer.json", path)
    )
    differing = sorted(token_id for token_id in {*ours, *theirs} if ours.get(token_id) != theirs.get(token_id))
    if differing:
        named = ", ".join(f"{each} is {ours.get(each)!r} and {theirs.get(each)!r}" for each in differing[:_NAMED])
        raise OperatorError(
            f"{path}: {len(differing)} token ids mean something else than in {student_dir / 'tokenizer.json'}: {named}"
            f"{', …' if len(differing) > _NAMED else ''}; expected the student's own tokenizer; take a teacher of the student's "
            "family, or serve this one and learn its log-probabilities ([teachers.NAME] top_logprobs)"
        )


def student_watch(student: PreTrainedModel, table: LocalTeacherTable, *, first_layer: int) -> AttentionWatch:
    """Return what keeps the projections of the student's layer that learns to relate; layers before `first_layer` are frozen.

    Raises OperatorError where there is no such layer, or it cannot learn, or relations cannot be taken from it.
    """
    if table.student_layer is not None and table.student_layer <= first_layer:
        raise OperatorError(
            f"[train.local_teacher] student_layer is {table.student_layer}, and the student's first {first_layer} layers are frozen; "
            "give a later one, or raise [train] last_layers"
        )
    return _watch(student, table.student_layer, table, whose="student")


def _watch(
    model: PreTrainedModel, layer: int | None, table: LocalTeacherTable, *, whose: Literal["student", "teacher"]
) -> AttentionWatch:
    """Return what keeps the projections of a model's layer, counted from 1; None is a teacher's last but one, a student's last."""
    # Families that name their layers otherwise project in other ways too, and the watch refuses them.
    layers = getattr(model.get_decoder(), "layers", [torch.nn.Identity()])
    number = layer or (len(layers) if whose == "student" else max(1, len(layers) - 1))
    if number > len(layers):
        raise OperatorError(
            f"[train.local_teacher] {whose}_layer is {number}, and the {whose} has {len(layers)} layers; "
            f"give at most {len(layers)}, counted from 1"
        )
    watch = AttentionWatch(layers[number - 1], model.config, whose=f"the {whose}")
    if watch.width % table.relation_heads:
        raise OperatorError(
            f"[train.local_teacher] relation_heads is {table.relation_heads}, and the projections of the {whose} are {watch.width} "
            "wide; expected a number that divides the width of both"
        )
    return watch
