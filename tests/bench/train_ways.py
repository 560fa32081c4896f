"""One way of training, measured in a process of its own: `python -m tests.bench.train_ways '{"way": …}'`.

In: a way, a model and what to learn, as JSON. Out: one line of JSON for each length of conversation, with seconds, tokens and
peak memory. Everything before the first step (loading, adapters, a warm-up step) is outside the clock.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distill.settings import TrainTable
from distill.training.batches.forest import Forest
from distill.training.decisions.training_row import TrainingRow
from distill.training.student.learning import student_of
from tests.bench.train_work import SHAPES, Work

ROWS_A_STEP = 16
Learn = Callable[[Sequence[TrainingRow]], float]


def loaded(work: Work, dtype: torch.dtype) -> Any:
    """Return the model on its device: a real student's, or one with random weights, made there."""
    from transformers import AutoModelForCausalLM, Phi3Config

    if work.student is not None:
        model = AutoModelForCausalLM.from_pretrained(work.student, dtype=dtype, attn_implementation="sdpa")
        return model.to(work.device)
    torch.manual_seed(0)
    with torch.device(work.device):
        return AutoModelForCausalLM.from_config(Phi3Config(**SHAPES[work.model]), dtype=dtype, attn_implementation="sdpa")


def ours(work: Work) -> Learn:
    """Return our own step, as `distill train` makes it: with the prefix tree, or every row alone."""
    settings = TrainTable(
        kind="full" if work.kind == "full" else "lora",
        rank=work.rank,
        alpha=2 * work.rank,
        gradient_checkpointing=work.checkpointing,
    )
    dtype = torch.float32 if work.kind == "full" else getattr(torch, work.dtype)
    student = student_of(loaded(work, dtype), settings, base_dir=Path(work.model))
    layout = student.layout(work.token_budget)
    if work.way == "rows":
        layout = replace(layout, max_tree_tokens=0, max_joined_tokens=0)
    optimizer = torch.optim.AdamW(list(student.trainable.values()), lr=1e-4, fused=True)

    def learn(rows: Sequence[TrainingRow]) -> float:
        forest, begun = Forest(rows), time.perf_counter()
        order = [row for conversation in forest.conversations for row in conversation]
        for start in range(0, len(order), work.rows_a_step):
            trees = layout.trees(forest, [forest.whole(row) for row in order[start : start + work.rows_a_step]])
            weight = sum(tree.scored_weight for tree in trees)
            for batch in layout.batches(trees):
                (student.loss_sum(batch) / weight).backward()
            torch.nn.utils.clip_grad_norm_(list(student.trainable.values()), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        wait(work.device)
        return time.perf_counter() - begun

    return learn


def trl(work: Work) -> Learn:
    """Return TRL's SFTTrainer on the same token ids and labels: with its defaults, or tuned.

    Tuned: rows of like length together, no gradient checkpointing, the number format and the rows at once as `work` says.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    defaults = work.way == "trl, defaults"
    model = loaded(work, torch.float32 if defaults or work.kind == "full" else getattr(torch, work.dtype))
    if work.kind == "lora":
        targets = LoraConfig(r=work.rank, lora_alpha=2 * work.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, targets)
    tuned: dict[str, Any] = {
        "per_device_train_batch_size": work.batch,
        "gradient_accumulation_steps": max(1, work.rows_a_step // work.batch),
        "bf16": work.dtype == "bfloat16",
        "gradient_checkpointing": work.checkpointing,
        "train_sampling_strategy": "group_by_length",
        "max_length": None,
    }

    class Clock(TrainerCallback):
        seconds = 0.0

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.seconds = -time.perf_counter()

        def on_train_end(self, *_: object, **__: object) -> None:
            wait(work.device)
            self.seconds += time.perf_counter()

    def learn(rows: Sequence[TrainingRow]) -> float:
        lines = [
            {
                "input_ids": [*row.prompt_ids, *row.answer_ids],
                "labels": [*[-100] * len(row.prompt_ids), *row.answer_ids],
            }
            for row in rows
        ]
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            settings = SFTConfig(
                output_dir=folder, num_train_epochs=1, learning_rate=1e-4, report_to="none", save_strategy="no", disable_tqdm=True,
                logging_steps=1000, use_cpu=work.device == "cpu", dataset_kwargs={"skip_prepare_dataset": True},
                dataloader_pin_memory=False, **({} if defaults else tuned),
            )  # fmt: skip
            trainer = SFTTrainer(
                model=model,
                args=settings,
                train_dataset=Dataset.from_list(lines),
                processing_class=_tokenizer(),
                callbacks=[clock],
            )
            trainer.train()
        return clock.seconds

    return learn


WAYS: dict[str, Callable[[Work], Learn]] = {"tree": ours, "rows": ours, "trl, tuned": trl, "trl, defaults": trl}


def measured(work: Work) -> Iterator[dict[str, object]]:
    """Yield what one way takes for each length of conversation."""
    learn = WAYS[work.way](work)
    for turns in sorted(work.conversations, key=int):
        rows = work.rows(int(turns))
        # The first steps compile, and make what the libraries keep.
        learn(rows if work.device == "cuda" else rows[:4])
        if work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        computed = time.process_time()
        seconds = min(learn(rows) for _ in range(work.times))
        computed = (time.process_time() - computed) / work.times
        yield {
            "turns": int(turns),
            "seconds": seconds,
            "cpu_seconds": computed,
            "rows": len(rows),
            "row_tokens": sum(row.input_tokens for row in rows),
            "scored_tokens": sum(len(row.answer_ids) for row in rows),
            "tree_tokens": len(Forest(rows)),
            "pairs": _pairs(rows, shared=work.way == "tree"),
            "peak_mb": _peak_mb(work.device),
        }


def gemm(work: Work) -> dict[str, object]:
    """Return the machine's peak in matrix products, in GFLOP/s by number format, and how much of what the model computes.

    The best of the model's widest layer and of a square. `attention`: its query elements of a token in all layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, Phi3Config

    config = Phi3Config(**SHAPES[work.model]) if work.student is None else AutoConfig.from_pretrained(work.student)
    tokens = 8192 if work.device == "cuda" else 1024
    peak: dict[str, float] = {}
    for name in ("float32", "bfloat16"):
        for deep, wide in ((config.hidden_size, config.intermediate_size), (2048, 2048)):
            left = torch.randn(tokens, deep, device=work.device, dtype=getattr(torch, name))
            right = torch.randn(wide, deep, device=work.device, dtype=getattr(torch, name)).t()
            for _ in range(20):
                begun = time.perf_counter()
                left @ right
                wait(work.device)
                speed = 2 * tokens * deep * wide / (time.perf_counter() - begun) / 1e9
                peak[name] = max(peak.get(name, 0.0), speed)
    with torch.device("meta"):
        weights = list(AutoModelForCausalLM.from_config(config).parameters())
    head = config.vocab_size * config.hidden_size
    matrices = sum(weight.numel() for weight in weights if weight.ndim == 2)
    heads = config.num_attention_heads
    return {
        "gflops": peak,
        "body": matrices - head * (1 if config.tie_word_embeddings else 2),
        "head": head,
        "attention": config.num_hidden_layers * heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
    }


def _pairs(rows: Sequence[TrainingRow], *, shared: bool) -> int:
    """Return how many times a token looks at itself or at one before it."""
    if not shared:
        return sum(row.input_tokens * (row.input_tokens + 1) // 2 for row in rows)
    forest = Forest(rows)
    parts = [forest.whole(number) for conversation in forest.conversations for number in conversation]
    trees = forest.trees(parts, max_tree_tokens=10**9, max_joined_tokens=0)
    return sum(position + 1 for tree in trees for position in tree.positions)


def _peak_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def wait(device: str) -> None:
    """Let a GPU finish what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def _tokenizer() -> Any:
    """Return a tokenizer for TRL's sake: the rows are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def main() -> None:
    """Print what was asked for, a line of JSON at a time."""
    work = Work(**json.loads(sys.argv[1]))
    for line in [gemm(work)] if work.way == "gemm" else measured(work):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
