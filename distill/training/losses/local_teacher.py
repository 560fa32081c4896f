"""A teacher whose weights are on this machine: it reads what the student reads, and tells all that it believes.

In: a checkpoint folder with the student's own tokenizer. Out: for a micro-batch its states before the output head, and what one
of its attention layers projects. It never learns, and is refused where its token ids would mean other words than the student's.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from conversations.errors import OperatorError
from distill.settings import LocalTeacherTable
from distill.training.batches.packing import Batch, visible
from distill.training.losses.head import TeacherStates
from distill.training.losses.relations import AttentionWatch, Projections

# How many tokens that differ an error names.
_NAMED = 3


@dataclass(frozen=True)
class TeacherView:
    """What the teacher makes of a micro-batch; `projections` are None where its relations are not learnt."""

    states: TeacherStates
    projections: Projections | None


class LocalTeacher:
    """A frozen model that tells what it believes. Made by `open_local_teacher`."""

    def __init__(self, model: PreTrainedModel, table: LocalTeacherTable) -> None:
        """Raise OperatorError where the model has no such layer, or relations cannot be taken from it."""
        self._model = model.requires_grad_(False).eval()
        self._watch: AttentionWatch | None = None
        if table.relations_weight:
            layers = model.get_decoder().layers
            layer = _layer(table.teacher_layer or max(1, len(layers) - 1), len(layers), "teacher_layer")
            self._watch = AttentionWatch(layers[layer - 1], model.config, whose="the local teacher")
            check_relation_heads(self._watch, table, whose="the local teacher")

    def beliefs(self, batch: Batch) -> TeacherView:
        """Return what the teacher makes of a micro-batch that is on its device."""
        with torch.no_grad():
            if self._watch is None:
                return TeacherView(self._states(batch), None)
            with self._watch.watching():
                states = self._states(batch)
            return TeacherView(states, self._watch.take())

    def _states(self, batch: Batch) -> TeacherStates:
        hidden = self._model.get_decoder()(
            input_ids=batch.token_ids,
            position_ids=batch.position_ids,
            attention_mask=None if batch.subtree_ends is None else visible(batch.subtree_ends),
            use_cache=False,
        ).last_hidden_state
        scored = hidden.reshape(-1, hidden.shape[-1])[batch.scored_at]
        return TeacherStates(scored, self._model.get_output_embeddings().weight)


def open_local_teacher(table: LocalTeacherTable, *, student: PreTrainedModel, student_dir: Path) -> LocalTeacher:
    """Load the teacher of the settings onto the student's device, in the number format of the student's base.

    Raises OperatorError where it cannot be loaded, reads other token ids than the student, or would teach nothing.
    """
    if not table.logits_weight and not table.relations_weight:
        raise OperatorError(
            "[train.local_teacher]: logits_weight and relations_weight are both 0, so that it would teach nothing; "
            "set one of them, or leave the table out"
        )
    check_same_tokenizer(student_dir, table.path)
    weight = student.get_output_embeddings().weight
    try:
        model = AutoModelForCausalLM.from_pretrained(
            table.path, local_files_only=True, dtype=weight.dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"[train.local_teacher] path = {str(table.path)!r}: cannot be loaded as a teacher: {error}"
        ) from error
    theirs, ours = model.get_output_embeddings().weight.shape[0], weight.shape[0]
    if theirs != ours:
        raise OperatorError(
            f"[train.local_teacher] path = {str(table.path)!r}: its output head has {theirs} entries and the student's {ours}; "
            "expected one vocabulary for both; take a teacher of the student's family"
        )
    return LocalTeacher(model.to(weight.device), table)


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
    layers = student.get_decoder().layers
    layer = _layer(table.student_layer or len(layers), len(layers), "student_layer")
    if layer <= first_layer:
        raise OperatorError(
            f"[train.local_teacher] student_layer is {layer}, and the student's first {first_layer} layers do not learn; "
            "give a later one, or raise [train] last_layers"
        )
    watch = AttentionWatch(layers[layer - 1], student.config, whose="the student")
    check_relation_heads(watch, table, whose="the student")
    return watch


def check_relation_heads(watch: AttentionWatch, table: LocalTeacherTable, *, whose: str) -> None:
    """Raise OperatorError where the projections cannot be cut into the relation heads."""
    if watch.width % table.relation_heads:
        raise OperatorError(
            f"[train.local_teacher] relation_heads is {table.relation_heads}, and the projections of {whose} are {watch.width} wide; "
            "expected a number that divides the width of both"
        )


def _layer(number: int, count: int, key: str) -> int:
    if number > count:
        raise OperatorError(
            f"[train.local_teacher] {key} is {number}, and that model has {count} layers; give at most {count}, counted from 1"
        )
    return number
