"""The model card: what trained weights say of themselves to whoever finds their folder.

In: what was trained on what, whose answers those were, and how it went. Out: the text of a README.md. Holds digests and figures,
never a customer's words and never the place of a folder.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from conversations.messages import Json
from distill.rows import DatasetRow, read_rows

_LICENCE = {
    "yes": "its licence allows training",
    "unknown": "whether its licence allows training is UNKNOWN; the operator answers for it",
}


def model_card(
    *,
    base_name: str,
    kind: str,
    digests: Mapping[str, str],
    teachers: Mapping[str, str],
    settings: Mapping[str, Json],
    figures: Mapping[str, Json],
) -> str:
    """Return the card as Markdown with the front matter that model hubs read."""
    library = "peft" if kind == "lora" else "transformers"
    return "\n".join(
        (
            "---",
            f"library_name: {library}",
            f"base_model: {base_name}",
            "---",
            "",
            f"# A student of {base_name}",
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
            "## How it went",
            *_table(figures),
            "",
            "## Settings",
            *_table(settings),
            "",
        )
    )


def teachers_of(*paths: Path) -> dict[str, str]:
    """Return how many of the rows in some files each teacher gave, and what its licence says."""
    rows = Counter((row.teacher, row.licence) for path in paths for row in read_rows(path, DatasetRow))
    told: dict[str, str] = {}
    for (teacher, licence), count in sorted(rows.items()):
        already = f"{told[teacher]}; " if teacher in told else ""
        told[teacher] = f"{already}{count} rows, {_LICENCE[licence]}"
    return told


def _table(entries: Mapping[str, Json] | Mapping[str, str]) -> list[str]:
    return ["", "| | |", "|---|---|", *(f"| {name} | {_shown(value)} |" for name, value in entries.items())]


def _shown(value: Json) -> str:
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) or "none"
    return str(value)
