"""What a report promises beside its figures: what is missing is called so, no changed row goes unnoticed, the page needs nothing."""

import html.parser
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from reported_run import GATE, reported_run
from rich.console import Console

from conversations import artefacts, checks, runs
from conversations.errors import OperatorError
from distill.evaluation.page.terminal import printed
from distill.evaluation.page.words import METRIC_GROUPS
from distill.evaluation.report import build_report, check_report, read_report, renew_report, write_report
from distill.evaluation.scoring.metric import Metric
from distill.rows import EvaluationRow, read_rows
from distill.run import Run, Stage, file_digest
from support_bot.console.reports import show_report
from tests.bench import page as pictured


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with reported_run(tmp_path) as made:
        yield made


def page_text(run: Run) -> str:
    return (run.folder / "report.html").read_text(encoding="utf-8")


def card_path(run: Run) -> Path:
    return run.folder / "train" / "adapter" / "README.md"


def as_text(run: Run) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(printed(read_report(run.folder)))
    return console.export_text()


def test_a_changed_score_is_found_and_the_figure_named(run: Run) -> None:
    assert check_report(run) > 900
    rows = list(read_rows(run.folder / "evaluate" / "rows.jsonl", EvaluationRow))
    place = next(n for n, row in enumerate(rows) if row.model == "candidate" and row.scores.get("fact_accuracy") == 0.0)
    rows[place] = rows[place].model_copy(update={"scores": {**rows[place].scores, "fact_accuracy": 1.0}})
    run.write_rows(Stage.EVALUATE, "rows.jsonl", rows)
    with pytest.raises(OperatorError, match=r"models\.candidate\.quality\.fact_accuracy\.value"):
        check_report(run)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("retained", "high"), 2.0, "retained.high"),
        (("gate", "outcome"), "promote", "gate.outcome"),
        (("targets", 2, "outcome"), "met", r"targets\[2\].outcome"),
        (("gate", "overridden"), {"by": "nobody", "reason": "made up"}, "gate.overridden: it is in the report alone"),
        (("gate", "checks"), [{"name": "retained", "outcome": "passed", "told": "made up", "value": 0.999}], "gate.checks"),
        (("models", "teacher"), None, "models.teacher"),
    ],
)
def test_a_report_changed_by_hand_is_found(run: Run, path: tuple[str | int, ...], value: object, named: str) -> None:
    report = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    part = report
    for key in path[:-1]:
        part = part[key]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    (run.folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(OperatorError, match=named):
        check_report(run)


@pytest.mark.slow
def test_the_command_checks_and_renews_and_ends_with_2_where_rows_and_report_differ(run: Run, tmp_path: Path) -> None:
    runs.finish_run(run.record, run.run_id, state=runs.RunState.COMPLETE, outcome="refuse", report=read_report(run.folder))

    def report(*options: str) -> subprocess.CompletedProcess[str]:
        code = "from distill.cli import main; main()"
        command = [sys.executable, "-c", code, "report", run.run_id, "--settings", str(tmp_path / "settings.toml"), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert report("--check").returncode == 0
    (run.folder / "evaluate" / "load.json").write_text('{"rows": []}', encoding="utf-8")
    refused = report("--check")
    assert refused.returncode == 2 and "load" in refused.stderr and "--renew" in refused.stderr
    renewed = report("--renew", "--check", "--json")
    assert renewed.returncode == 0, renewed.stderr
    told = json.loads(renewed.stdout)
    assert told["load"] == [] and told["gate"] == GATE
    assert runs.run(run.record, run.run_id).report == told


def test_a_renewed_report_has_the_gate_of_the_stage_and_nothing_that_was_written_into_the_report(run: Run) -> None:
    told = read_report(run.folder)
    write_report(
        run,
        {
            **told,
            "gate": {
                **GATE,
                "reasons": ["made up"],
                "checks": [{"name": "retained", "outcome": "passed", "told": "made up", "value": 0.999}],
            },
        },
    )
    assert renew_report(run)["gate"] == GATE
    assert check_report(run)


def failing(rows: list[EvaluationRow]) -> list[EvaluationRow]:
    """The candidate answers right or not at all."""
    right = [
        row.model_copy(update={"scores": {**row.scores, "fact_accuracy": 1.0}, "failure": ""})
        if row.model in ("candidate", "teacher") and row.scores.get("fact_accuracy") is not None
        else row
        for row in rows
    ]
    return [
        row.model_copy(update={"scores": {}, "failure": "HTTP 503", "text": ""})
        if row.model == "candidate" and place % 3 == 0
        else row
        for place, row in enumerate(right)
    ]


def test_answers_that_were_not_given_count_as_nought_in_the_share_kept_and_stand_first(tmp_path: Path) -> None:
    with reported_run(tmp_path, change=failing) as run:
        report, page = read_report(run.folder), page_text(run)
        candidate, kept, target = report["models"]["candidate"], report["retained"], report["targets"][0]
        assert candidate["quality"]["fact_accuracy"]["value"] == 1.0 and candidate["failed_answers"] > 10
        assert kept["failed"] > 5 and kept["value"] == pytest.approx(1 - kept["failed"] / kept["n"], abs=1e-6)
        assert target["outcome"] == "missed" and target["reason"].endswith(f"did not give count as 0: {kept['failed']}")
        said = f"of which {kept['failed']} gave no answer and count as 0"
        counted = f"{candidate['failed_answers']} of {candidate['asked_answers']}"
        for text in (page, as_text(run)):
            assert said in text and "gave no answer" in text and counted in text
        runs.note_report(run.record, run.run_id, report)
        assert counted in show_report(run.record, run.run_id)
        worst = page[page.index("data-decision") :].split("data-decision")
        assert all("HTTP 503" in case for case in worst[1 : candidate["failed_answers"]]) and "-1.00 ·" in worst[1]
        assert check_report(run)


def test_a_score_that_no_answer_can_have_counts_as_missing_and_the_report_is_strict_json(tmp_path: Path) -> None:
    impossible = iter([float("nan"), float("inf"), 2.0, -0.5])

    def spoilt(rows: list[EvaluationRow]) -> list[EvaluationRow]:
        return [
            row.model_copy(update={"scores": {**row.scores, "fact_accuracy": value}})
            if row.model == "candidate" and row.scores.get("fact_accuracy") is not None and (value := next(impossible, None))
            else row
            for row in rows
        ]

    with reported_run(tmp_path / "good") as run:
        before = read_report(run.folder)["models"]["candidate"]["quality"]["fact_accuracy"]["n"]
    with reported_run(tmp_path / "spoilt", change=spoilt) as run:
        text = (run.folder / "report.json").read_text(encoding="utf-8")
        told = json.loads(text, parse_constant=lambda name: pytest.fail(name))
        assert told["models"]["candidate"]["quality"]["fact_accuracy"]["n"] == before - 4
        assert told["models"]["candidate"]["quality"]["answer_words"]["value"] > 1
        assert "nan" not in page_text(run) and check_report(run)


def test_the_most_requests_an_hour_are_those_of_the_evaluation_where_load_had_fewer(run: Run) -> None:
    before = build_report(run)["targets"][-1]
    row = {"model": "candidate", "release_id": "student-2", "concurrency": 1, "requests_per_hour": 7.0}
    (run.folder / "evaluate" / "load.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    assert renew_report(run)["targets"][-1] == before and before["concurrency"] == 8
    assert ", 8 at once" in page_text(run) and ", 8 at once" in as_text(run)


def test_what_was_not_measured_is_missing_and_never_nought(tmp_path: Path) -> None:
    def without_times(rows: list[EvaluationRow]) -> list[EvaluationRow]:
        return [
            row.model_copy(update={"latency_ms": None, "first_token_ms": None, "completion_tokens": None}) for row in rows
        ]

    with reported_run(tmp_path, change=without_times, took={}) as run:
        report = read_report(run.folder)
        candidate = report["models"]["candidate"]
        for key in ("memory_bytes", "gpu_memory_bytes", "weights_bytes", "requests_per_hour", "tokens_per_second",
                    "cost_usd_per_1000_turns"):  # fmt: skip
            assert candidate[key] is None, key
        assert candidate["latency_ms"] == {"p50": None, "p95": None}
        assert (report["latency"], report["load"], report["judge"]) == (None, None, None)
        told = {row["name"]: (row["outcome"], row["ratio"], row["on_gpu"]) for row in report["targets"]}
        assert told.pop("quality_kept")[0] in ("met", "missed")
        assert set(told.values()) == {("missing", None, None)}
        for text in (page_text(run), as_text(run)):
            assert text.count("not measured") > 20
        assert "How long an answer takes" not in page_text(run)


def test_the_gpu_column_is_filled_where_the_server_of_the_run_had_one(run: Run) -> None:
    taken = json.loads((run.folder / "evaluate" / "taken.json").read_text(encoding="utf-8"))
    taken["candidate"]["gpu_memory_bytes"] = 30_000_000_000
    (run.folder / "evaluate" / "taken.json").write_text(json.dumps(taken), encoding="utf-8")
    rows = {row["name"]: row for row in build_report(run)["targets"]}
    assert rows["memory"]["student"] == 30e9
    assert rows["cost_per_1000_turns"]["on_gpu"]["outcome"] == "met" and rows["cost_per_1000_turns"]["on_cpu"] is None


class Tags(html.parser.HTMLParser):
    """Every tag of a page with its attributes, and the ids that stand twice."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_runs_nothing(run: Run) -> None:
    page = page_text(run)
    tags = Tags(page).tags
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import", page)
    pictures = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(pictures) == 6 and all(attributes["aria-label"] for attributes in pictures)
    ids = [attributes["id"] for _, attributes in tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    # Customers' words and topics are text.
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "&lt;b&gt;house" in page


def test_the_worst_cases_stand_side_by_side_with_what_was_said_before_and_what_is_wrong(run: Run) -> None:
    page = page_text(run)
    cases = re.findall(r'data-decision="(decision_\w+)"><summary>([+-]\d\.\d\d)', page)
    gaps = [float(gap) for _, gap in cases]
    assert gaps == sorted(gaps) and gaps[0] == -1.0 and gaps[-1] > -1.0 and 0 < len(cases) <= 20
    first = page[page.index(cases[0][0]) :].split("data-decision", 1)[0]
    assert "Earlier question" in first and "wait 12 minutes" in first and "You help." not in first
    assert first.count('class="answer"') == 4
    assert "Wrong or not asked for: 30" in page


def test_the_same_run_gives_the_same_page_and_the_page_shows_the_report_alone(run: Run) -> None:
    before = page_text(run)
    report = read_report(run.folder)
    write_report(run, report)
    assert page_text(run) == before
    told = {**report, "retained": {"value": 0.4242, "low": 0.1, "high": 0.9, "n": 7}}
    write_report(run, told)
    assert "42.4% (10.0% to 90.0%) n=7" in page_text(run)


def test_the_report_and_the_card_name_no_decision_and_no_customer_so_that_an_erasure_leaves_them_whole(run: Run) -> None:
    for path in (run.folder / "report.json", card_path(run)):
        assert not re.search(r"(decision|conversation)_[0-9a-f]{6}", path.read_text(encoding="utf-8"))


def test_the_gate_stands_on_top_with_its_reasons_and_checks(run: Run) -> None:
    check = {"name": "wrong_facts", "outcome": "failed", "told": "states 30 %", "value": 0.3, "bound": 0.1}
    overridden = {"by": "olga", "reason": "the handbook was wrong", "at": "2026-01-01"}
    write_report(run, {**read_report(run.folder), "gate": {**GATE, "checks": [check], "overridden": overridden}})
    page = page_text(run)
    top = page[: page.index("In pictures")]
    for words in ("refuse", "keeps 70.0%", "wrong facts", "states 30 %", "overridden by olga: the handbook was wrong"):
        assert words in top


def test_every_metric_has_a_name_in_print_and_one_that_has_none_is_printed_all_the_same(run: Run) -> None:
    assert {metric for titles in METRIC_GROUPS.values() for metric in titles} >= set(Metric)
    report = read_report(run.folder)
    report["models"]["candidate"]["quality"]["made_up_rate"] = {"value": 0.5, "low": None, "high": None, "n": 4}
    write_report(run, report)
    assert "made up rate" in page_text(run) and "50.0% n=4" in as_text(run)


def test_the_card_gets_the_figures_once_and_the_weights_stay_as_they_were(run: Run) -> None:
    weights = run.folder / "train" / "adapter" / "adapter_model.safetensors"
    digest, card = file_digest(weights), card_path(run).read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "owner/tiny" and front["license"] == "apache-2.0" and front["library_name"] == "peft"
    results = front["model-index"][0]["results"][0]
    told = {each["type"]: each["value"] for each in results["metrics"]}
    report = read_report(run.folder)
    assert told["fact_accuracy"] == report["models"]["candidate"]["quality"]["fact_accuracy"]["value"]
    assert told["retained"] == report["retained"]["value"]
    for words in ("sha256:d", "sha256:t", "40 rows, its licence allows training", "| gate | refuse |", run.run_id, "student-2",
                  "95 % interval", "## What it is for, and what it is not"):  # fmt: skip
        assert words in card
    renew_report(run)
    assert card_path(run).read_text(encoding="utf-8") == card
    assert card.count("## What was measured") == 1 and card.count("model-index:") == 1
    assert file_digest(weights) == digest


def test_the_record_knows_the_card_as_it_is_after_the_figures_were_put_on_it(run: Run) -> None:
    with run.record.write() as transaction:
        known = transaction.query("SELECT digest FROM artefacts WHERE path = ?", [str(card_path(run))])
    assert [row["digest"] for row in known] == [artefacts.file_digest(card_path(run))]
    assert [problem for problem in checks.verify(run.record).problems if "README" in str(problem)] == []


def test_the_console_shows_the_aims_the_topics_the_load_and_what_is_not_there_as_a_dash(run: Run) -> None:
    row = {
        "model": "candidate", "release_id": "student-2", "concurrency": 32, "requests": 90, "failed": 1, "requests_per_hour": 4321.0,
        "tokens_per_second": 77.0, "first_token_ms": {"p50": 9.0, "p95": 11.0}, "latency_ms": {"p50": 8.0, "p95": 9.0},
    }  # fmt: skip
    (run.folder / "evaluate" / "load.json").write_text(json.dumps({"rows": [row]}), encoding="utf-8")
    (run.folder / "evaluate" / "judge.json").write_text(
        '{"agreement": {"value": 0.8, "kappa": 0.61, "n": 20}}', encoding="utf-8"
    )
    report = renew_report(run)
    shown = show_report(run.record, run.run_id)
    for words in ("Against the published targets", "kept of the teacher&#x27;s quality", "not measured", "4,321", "1 of 90", "0.61",
                  "By topic", "moving &lt;b&gt;house&lt;/b&gt;", f"{report['retained']['value']:.1%}", "4.0 GB"):  # fmt: skip
        assert words in shown, words
    assert '<span class="none">–</span>' in shown and "<b>house" not in shown


def test_the_page_is_as_wide_as_its_window_and_no_text_of_a_picture_lies_on_another(run: Run, tmp_path: Path) -> None:
    if not Path(pictured.CHROMIUM).exists():
        reason = f"{pictured.CHROMIUM} is not there; `apt-get install chromium` brings it"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    found = pictured.pictures(run.folder / "report.html", tmp_path / "pictures")
    assert set(found) == {f"report-{width}-{scheme}" for width in (1280, 390) for scheme in ("light", "dark")}
    assert set(found.values()) == {0}
    assert pictured.overlapping(run.folder / "report.html") == []
    assert pictured.cut_off(run.folder / "report.html") == []
