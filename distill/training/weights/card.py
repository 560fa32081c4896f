"""The model card: what trained weights say of themselves to whoever finds their folder.

In: what was trained on what, whose answers those were, how it went, and later what was measured. Out: the text of a README.md. Holds
digests and figures, never a customer's words and never the place of a folder.
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
_MEASURED_TITLE = "## What was measured"
_USE_TITLE = "## What it is for, and what it is not"
_MEASURED_PARTS = re.compile(rf"^(?:{_MEASURED_TITLE}|{_USE_TITLE})\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
# The last key of the front matter, which evaluation alone writes.
_MODEL_INDEX = re.compile(r"^model-index:\n(?:[ -].*\n)*", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.MULTILINE | re.DOTALL)
# Of a report's part on the candidate, beside the quality.
_SPEED = (
    "first_token_ms", "latency_ms", "tokens_per_second", "requests_per_hour", "memory_bytes", "gpu_memory_bytes", "weights_bytes",
    "cost_usd_per_1000_turns",
)  # fmt: skip
_USE = """
It answers questions of one company's customers in its support chat, in the languages and on the subjects of the conversations that it
was taught. People read along there, and can take over.

- It was measured on held-out customers of that company alone; the figures say nothing about another company, or another subject.
- It can state a wrong fact, and can answer where it should say that it does not know; the rates are above.
- It knows what the handbook said when it was taught, and does not learn of a change by itself.
- It is no source for medical, legal or financial advice, and decides nothing about a person.
"""
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


def with_measured(card: str, report: Mapping[str, Json], *, teacher: str) -> str:
    """Return a card with what a report says of these weights; what an earlier report said on it goes.

    report: as `report.json` holds it, with the gate's word. teacher: whom the student is held against. The figures also stand in the
    front matter, as `model-index`, the form in which model hubs read results.
    """
    candidate = _part(_part(report.get("models")).get("candidate"))
    quality = _part(candidate.get("quality"))
    edition = f"test edition {report.get('test_edition')}"
    lines = ["model-index:", f"- name: {_quoted(str(report.get('release_id')))}", "  results:"]
    lines += [
        "  - task: {type: text-generation}",
        f"    dataset: {{name: {_quoted(edition)}, type: held-out-customers}}",
        "    metrics:",
    ]
    lines += [
        f"    - {{type: {name}, value: {json.dumps(_part(estimate).get('value'))}}}"
        for name, estimate in {"retained": report.get("retained"), **quality}.items()
        if _part(estimate)
    ]
    gate = _part(report.get("gate"))
    reasons = gate.get("reasons")
    of_run: dict[str, Json] = {
        "release": report.get("release_id"),
        "run": report.get("run_id"),
        "started from": report.get("started_from"),
        "test edition": report.get("test_edition"),
        "test rows": report.get("test_digest"),
        "teacher": teacher,
        "gate": gate.get("outcome"),
        "gate, because": "; ".join(map(str, reasons)) if isinstance(reasons, list) else None,
    }
    figures: dict[str, Json] = {
        f"kept of the teacher's {report.get('quality_metric')}": _interval(report.get("retained")),
        **{name: _interval(estimate) for name, estimate in quality.items()},
        **{name: candidate.get(name) for name in _SPEED},
    }
    known = {name: "not measured" if value is None else value for name, value in figures.items()}
    measured = "\n".join((_MEASURED_TITLE, *_table({**of_run, **known}), "", _USE_TITLE, _USE, ""))
    front = _FRONT_MATTER.match(card)
    index = "\n".join(lines) + "\n"
    plain = _MEASURED_PARTS.sub("", card[front.end() :] if front else card)
    head, title, rest = plain.partition(_SERVED_TITLE)
    told = _MODEL_INDEX.sub("", front[1]) if front else ""
    return f"---\n{told}{index}---\n{head}{measured}{title}{rest}"


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


def _interval(value: Json) -> str | None:
    """Return an estimate in words, None where there is none."""
    estimate = _part(value)
    if "value" not in estimate:
        return None
    low, high = estimate.get("low"), estimate.get("high")
    interval = "interval not known" if low is None or high is None else f"95 % interval {_shown(low)} to {_shown(high)}"
    return f"{_shown(estimate['value'])} ({interval}, n = {estimate.get('n')})"


def _part(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


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
