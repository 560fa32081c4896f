"""The model card: what trained weights say of themselves to whoever finds their folder.

In: what was trained on what, whose answers those were, and how it went. Out: the text of a README.md. Holds digests and figures,
never a customer's words and never the place of a folder.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.serving import Serving
from distill.rows import DatasetRow, read_rows

_RELATION = {"lora": "adapter", "merged": "finetune", "full": "finetune"}
_LICENCE_LINE = re.compile(r"""^license: *(["']?)([\w.-]+)\1 *$""", re.MULTILINE)
_SERVED_TITLE = "## How it is served"
_SERVED_PART = re.compile(rf"^{_SERVED_TITLE}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_LICENCE = {
    "yes": "its licence allows training",
    "unknown": "whether its licence allows training is UNKNOWN; the operator answers for it",
}


def model_card(
    *,
    serving: Serving,
    base_model: str,
    licence: str,
    digests: Mapping[str, str],
    teachers: Mapping[str, str],
    settings: Mapping[str, Json],
    figures: Mapping[str, Json],
) -> str:
    """Return the card as Markdown with the front matter that model hubs read.

    base_model: the base's name on model hubs, or its folder's. licence: the base's, empty where it is not known. digests: of
    everything that decided the training, by name.
    """
    front = [
        f"library_name: {'peft' if serving.kind == 'lora' else 'transformers'}",
        "pipeline_tag: text-generation",
        f"base_model: {_quoted(base_model)}",
        f"base_model_relation: {_RELATION[serving.kind]}",
        *([f"license: {_quoted(licence)}"] if licence else []),
        "tags: [customer-support, distillation]",
    ]
    return "\n".join(
        (
            "---",
            *front,
            "---",
            "",
            f"# A student of {_in_a_line(serving.base)}",
            "",
            "Fine-tuned by `distill train` on verified answers to questions of one company's customers. It was taught",
            "the answers alone (and to stop after them), each on the conversation as the chat renders it.",
            "",
            "## From what",
            *_table(digests),
            "",
            "## Whose answers",
            *_table(teachers),
            "",
            _SERVED_TITLE,
            *_table(_served(serving)),
            "",
            "## How it went",
            *_table(figures),
            "",
            "## Settings",
            *_table(settings),
            "",
        )
    )


def card_of_merged(card: str, serving: Serving, agreement: Mapping[str, Json]) -> str:
    """Return the card of an adapter as that of the weights it was merged into. serving: the merged weights'."""
    whole = card.replace("library_name: peft", "library_name: transformers", 1)
    whole = whole.replace("base_model_relation: adapter", "base_model_relation: finetune", 1)
    told = "\n".join((_SERVED_TITLE, *_table(_served(serving)), "", ""))
    whole = _SERVED_PART.sub(lambda _: told, whole, count=1)
    return "\n".join((whole.rstrip(), "", "## Merged, beside the unmerged adapter", *_table(agreement), ""))


def base_model_of(base_dir: Path) -> str:
    """Return the base's name on model hubs where its folder says it, as the embedded student's does, or the folder's name."""
    return str(_origin(base_dir).get("model") or base_dir.name)


def licence_of(base_dir: Path) -> str:
    """Return the base's licence where its folder says it, as hubs and the embedded student do."""
    origin = _origin(base_dir)
    if origin:
        return str(origin.get("license", ""))
    card = base_dir / "README.md"
    found = _LICENCE_LINE.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    return found[2] if found else ""


def _origin(base_dir: Path) -> dict[str, Json]:
    path = base_dir / "origin.json"
    try:
        held: Json = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise OperatorError(
            f"{path}: it is no JSON ({error}); expected what `distill unpack-student` wrote; unpack again"
        ) from None
    return held if isinstance(held, dict) else {}


def teachers_of(*paths: Path) -> dict[str, str]:
    """Return how many of the rows in some files each teacher gave, and what its licence says."""
    rows = Counter((row.teacher, row.licence) for path in paths for row in read_rows(path, DatasetRow))
    told: dict[str, str] = {}
    for (teacher, licence), count in sorted(rows.items()):
        already = f"{told[teacher]}; " if teacher in told else ""
        told[teacher] = f"{already}{count} rows, {_LICENCE[licence]}"
    return told


def _table(entries: Mapping[str, Json] | Mapping[str, str]) -> list[str]:
    return ["", "| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(_shown(value))} |" for name, value in entries.items())]


def _served(serving: Serving) -> dict[str, Json]:
    told: dict[str, Json] = serving.model_dump(mode="json")
    return told


def _cell(text: str) -> str:
    """Return a text as one cell of a Markdown table."""
    return _in_a_line(text).replace("|", "\\|")


def _in_a_line(text: str) -> str:
    return " ".join(text.splitlines())


def _quoted(text: str) -> str:
    """Return a text as YAML's double-quoted scalar, which JSON's strings are (YAML 1.2, 1.3)."""
    return json.dumps(text, ensure_ascii=False)


def _shown(value: Json) -> str:
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) or "none"
    return str(value)
