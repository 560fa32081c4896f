"""Whether a cycle is due by itself, and if not, what it waits for.

In: the record, the handbook and [schedule]. Out: one reason, in words. It starts nothing.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from conversations import runs
from conversations.runs import RunState
from conversations.store import Record
from distill.run import can_go_on
from distill.settings import DistillSettings, ScheduleTable


@dataclass(frozen=True)
class Dueness:
    """Whether a cycle is due by itself: `because`, or what it `waits_for` in words that stay, with the present `figures`."""

    because: str = ""
    waits_for: str = ""
    figures: str = ""


def due_because(record: Record, settings: DistillSettings) -> str:
    """Return why a cycle is due, or "" where none is."""
    return dueness(record, settings).because


def dueness(record: Record, settings: DistillSettings, now: datetime | None = None) -> Dueness:
    """Tell whether a cycle is due by itself.

    A student that learned what the handbook no longer says waits for nothing but the time of day. Otherwise the interval since the
    newest run must have passed, and enough conversations must have come since the newest one that has taught or is to: a run that
    failed or can't go on has taught nothing.
    """
    from distill.dataset.handbook.changes import due_because_of_handbook

    table, moment = settings.schedule, now or datetime.now(UTC)
    known = runs.runs(record)
    newest = next(iter(known), None)
    if newest and newest.state is RunState.RUNNING:
        return Dueness(waits_for=f"the run {newest.run_id} is going on")
    changed = due_because_of_handbook(record, settings.handbook.path) if settings.handbook else ""
    waited = moment - datetime.fromisoformat(newest.started_at_utc) if newest else None
    if waited is not None and waited < timedelta():
        # The clock was set back: how long ago it was is unknown.
        waited = None
    teaching = next((run for run in known if _teaches(run, settings)), None)
    new = runs.new_conversations(record, teaching.run_id if teaching else None)
    figures = f"{new} of {table.min_new_conversations} new conversations"
    if waited is not None:
        figures += f", {waited / timedelta(hours=1):.1f} of {table.every_hours:g} hours"
    if not changed and waited is not None and waited < timedelta(hours=table.every_hours):
        return Dueness(waits_for=f"{table.every_hours:g} hours have not passed since the last run", figures=figures)
    if not changed and new < table.min_new_conversations:
        return Dueness(waits_for=f"fewer than {table.min_new_conversations} conversations are new", figures=figures)
    if not _may_start(table, moment):
        return Dueness(waits_for=f"a cycle is due and starts at the next time of [schedule] cron = {table.cron!r}")
    return Dueness(because=changed or f"{new} conversations are new")


def _teaches(run: runs.Run, settings: DistillSettings) -> bool:
    return run.state is RunState.COMPLETE or (run.state is RunState.INTERRUPTED and can_go_on(run, settings))


def _may_start(table: ScheduleTable, now: datetime) -> bool:
    """Tell whether a time of the cron expression, if there is one, has come in the last minutes; earlier ones are missed."""
    if not table.cron:
        return True
    came = table.trigger().get_next_fire_time(None, now - timedelta(minutes=table.cron_minutes))
    return came is not None and came <= now
