"""The command `distill merge`: the adapter of a finished run, merged into its base.

In: a run's folder and the settings. Out: a checkpoint folder, checked on the run's own held-out decisions.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.prompt import Renderer
from conversations.serving import read_serving
from distill.run import Stage
from distill.settings import DistillSettings
from distill.training.decisions.reading import read_decisions
from distill.training.decisions.training_row import TrainingRow
from distill.training.result import FOLDERS, MERGED
from distill.training.weights.merging import Agreement, is_taken, merge_adapter


@dataclass(frozen=True)
class Merged:
    """Where a merged student is, and how alike it answers to the unmerged one."""

    out_dir: Path
    agreement: Agreement

    def figures(self) -> Mapping[str, Json]:
        """Return the agreement as the command prints it."""
        return asdict(self.agreement)


def merge_run(settings: DistillSettings, run_folder: Path, out_dir: Path | None) -> Merged:
    """Merge the adapter of a run, beside it or into `out_dir`, and return how alike it answers.

    Raises OperatorError when the run has no adapter, `out_dir` holds something already, or the adapter does not fit the base.
    """
    adapter_dir = run_folder / Stage.TRAIN / FOLDERS["lora"]
    out_dir = (out_dir or run_folder / Stage.TRAIN / MERGED).absolute()
    if is_taken(out_dir):
        raise OperatorError(
            f"{out_dir}: there is something already; expected an empty place; remove it, or name another with --out"
        )
    serving = read_serving(adapter_dir)
    if serving is None:
        raise OperatorError(
            f'{adapter_dir}: no adapter with its serving.json there; expected a run that has trained with [train] kind = "lora"; '
            f"run `distill train --run {run_folder.name}`"
        )
    rows = _rows(settings, run_folder, serving.max_model_len)
    card_path = adapter_dir / "README.md"
    try:
        card = card_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            f"{card_path}: cannot be read ({error}); expected the adapter's model card, which tells what it was trained on; train anew"
        ) from None
    agreement = merge_adapter(
        settings.student.base, adapter_dir, out_dir, rows, max_model_len=serving.max_model_len, card=card
    )
    return Merged(out_dir, agreement)


def _rows(settings: DistillSettings, run_folder: Path, max_model_len: int) -> list[TrainingRow]:
    """Return the run's held-out decisions, or those it was trained on where none were held out."""
    renderer = Renderer.load(settings.student.base)
    for name in ("validation.jsonl", "train.jsonl"):
        path = run_folder / Stage.ASSEMBLE / name
        if not path.is_file():
            raise OperatorError(
                f"{path}: no such file; expected the run's dataset, on which the merged student is compared with the unmerged; bring "
                "the folder back, or train in a new run"
            )
        rows, _ = read_decisions(
            path,
            renderer,
            max_prompt_tokens=settings.prompt.max_prompt_tokens,
            max_tokens=min(settings.train.max_tokens, max_model_len),
        )
        if rows:
            return rows
    return []
