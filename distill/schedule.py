"""The only runner: takes run requests, goes on with what a scheduler left, and starts a cycle when one is due.

In: the settings and the record. Out: cycles, one at a time across the processes and machines that share the record, and what was
decided and why, in the record and in words. APScheduler says when to look, or the platform's own timer does with `once`.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from conversations import runs, schedules
from conversations.errors import Failure, Refused
from conversations.processes import SECONDS_BETWEEN_BEATS, SILENT_SECONDS, is_alive, process_token
from conversations.runs import RunRequest, RunState
from conversations.schedules import LEASE, ScheduleDecision
from conversations.store import Record
from distill.cycle import run_cycle, unfinished_runs
from distill.due import Dueness, dueness
from distill.heartbeat import beating
from distill.run import Announce, can_go_on, has_folder
from distill.settings import DistillSettings

log = logging.getLogger(__name__)

SECONDS_BEFORE_NEXT_TRY = 3600.0
# A run whose process dies again and again in one stage, as for want of memory, is tried at once so often, and then seldom.
RESUMES_AT_ONCE = 10
FAILURES_BEFORE_GIVEN_UP = 3
ENDED_EARLY = "ended early"


@dataclass(frozen=True)
class Work:
    """A cycle that a scheduler does: a new one, or the run that it goes on with; and whose wish it fulfils."""

    decision: ScheduleDecision
    reason: str
    run_id: str | None = None
    request: RunRequest | None = None


def schedule(
    record: Record, settings: DistillSettings, announce: Announce, tell: Callable[[str], None], *, once: bool
) -> None:
    """Look for work and do it: for ever, until SIGTERM or Ctrl-C, or `once`.

    A cycle that fails is noted in the record and said; the schedule goes on. One that is stopped in the middle goes on when a
    scheduler looks again.
    """
    from distill.training.fitting.interruption import ending_at_sigterm

    scheduler = _Scheduler(record, settings, announce, tell)
    with ending_at_sigterm() as stop:
        try:
            if once:
                scheduler.look()
                return
            tell("waiting for run requests")
            _look_again_and_again(scheduler, settings.schedule.poll_seconds, lambda: stop.asked)
        except KeyboardInterrupt:
            tell("stopped")


class _Scheduler:
    """Looks at the record and does what there is to do. Its lease is held for one look, and prolonged while a cycle runs."""

    def __init__(self, record: Record, settings: DistillSettings, announce: Announce, tell: Callable[[str], None]) -> None:
        self._record, self._settings, self._announce, self._tell = record, settings, announce, tell
        self._token = process_token()
        self._told = ""

    def look(self) -> None:
        """Look once, and do at most one cycle. Raises KeyboardInterrupt when it is stopped."""
        with self._lease() as held_by:
            if held_by is not None:
                self._note(ScheduleDecision.STANDS_BY, f"the process {held_by} acts")
                return
            self._finish_canary()
            found = self._work()
            if isinstance(found, Work):
                self._do(found)
            else:
                self._note(ScheduleDecision.WAITS, found.waits_for, figures=found.figures)

    @contextmanager
    def _lease(self) -> Iterator[str | None]:
        """Hold the lease for a block, or yield who has it; one that a dead process of this machine has is free."""
        held_by = self._take()
        if held_by is not None and not is_alive(held_by):
            schedules.give_back_lease(self._record, LEASE, holder=held_by)
            held_by = self._take()
        if held_by is not None:
            yield held_by
            return
        try:
            with beating(self._prolong, SECONDS_BETWEEN_BEATS):
                yield None
        finally:
            schedules.give_back_lease(self._record, LEASE, holder=self._token)

    def _take(self) -> str | None:
        return schedules.take_lease(self._record, LEASE, holder=self._token, seconds=SILENT_SECONDS)

    def _prolong(self) -> None:
        # Whoever has it now took this process to be dead. The run's own sign of life ends what must end.
        if self._take() is not None:
            log.warning("this scheduler was silent for so long that it has lost its lease")

    def _finish_canary(self) -> None:
        from distill.evaluation.gate.canary import finish_canary

        try:
            said = finish_canary(self._record, self._settings)
        except Failure as failure:
            said = f"the canary could not be looked at: {failure}"
        if said:
            self._note(ScheduleDecision.CANARY, said)

    def _work(self) -> Work | Dueness:
        """Decide what to do now: what was left comes first, then what is asked for, then what is due."""
        going = next((run for run in runs.runs(self._record) if run.state is RunState.RUNNING), None)
        if going is not None:
            return Dueness(waits_for=f"the run {going.run_id} is going on")
        left = self._left_run()
        stopped = left if left and left.state is RunState.INTERRUPTED else None
        in_vain = _resumed_in_vain(self._record, stopped)
        found = None if in_vain else self._left(stopped)
        if found is not None:
            return found
        request = runs.take_request(self._record, self._token)
        if request is not None:
            return self._asked_for(request)
        if in_vain:
            return Dueness(waits_for=in_vain)
        if _ended_early_lately(self._record):
            # Whoever mends it can ask for a run at once; by itself it is tried again later.
            return Dueness(waits_for=f"the last cycle ended early; by itself the next one starts {_NEXT_TRY} after that")
        if left is not None:
            return Work(ScheduleDecision.RESUMED, f"failed in {left.stage or 'its start'}", left.run_id)
        due = dueness(self._record, self._settings)
        return self._wanted(f"due, as {due.because}") if due.because else due

    def _left_run(self) -> runs.Run | None:
        """Return the run that a scheduler was stopped or killed in, or that failed, where it can go on; else say once why not."""
        run = schedules.left_run(self._record)
        if run is None or not has_folder(run):
            return None
        if not can_go_on(run, self._settings):
            self._note_once(run, f"the run {run.run_id} was begun with other settings; it goes on where those are set back")
            return None
        if self._is_given_up(run):
            self._note_once(
                run,
                f"the run {run.run_id} failed {FAILURES_BEFORE_GIVEN_UP} times in a row; "
                f"`distill cycle --run {run.run_id}` goes on with it",
            )
            return None
        return run

    def _is_given_up(self, run: runs.Run) -> bool:
        return runs.failures_in_a_row(self._record, run.run_id) >= FAILURES_BEFORE_GIVEN_UP

    def _note_once(self, run: runs.Run, reason: str) -> None:
        if not schedules.was_noted(self._record, run_id=run.run_id, reason=reason):
            self._note(ScheduleDecision.WAITS, reason, run_id=run.run_id)

    def _left(self, run: runs.Run | None) -> Work | None:
        """Return the cycle that a scheduler left in the middle, which goes on at once, or None where none was left."""
        request = schedules.take_over_request(self._record, self._token)
        if request is not None and request.run_id is not None:
            served = runs.run(self._record, request.run_id)
            if served.state in (RunState.COMPLETE, RunState.FAILED):
                # Killed between the end of the run and that of its request.
                runs.settle_request(
                    self._record, request.request_id, state="done", run_id=served.run_id, outcome=served.outcome
                )
                request = None
        if run is not None:
            return Work(ScheduleDecision.RESUMED, f"left in the middle of {run.stage or 'its start'}", run.run_id, request)
        return self._asked_for(request) if request is not None else None

    def _asked_for(self, request: RunRequest) -> Work:
        return self._wanted(f"asked for by {request.requested_by}", request)

    def _wanted(self, reason: str, request: RunRequest | None = None) -> Work:
        """Return a cycle that is due or asked for: the newest unfinished run that a scheduler began, or a new one."""
        for run in unfinished_runs(self._record, self._settings):
            if runs.begun_by(self._record, run.run_id) == schedules.BY_SCHEDULE and not self._is_given_up(run):
                return Work(ScheduleDecision.RESUMED, reason, run.run_id, request)
        return Work(ScheduleDecision.STARTED, reason, request=request)

    def _do(self, work: Work) -> None:
        """Do a cycle, and say and note how it ended."""
        self._note(work.decision, work.reason, run_id=work.run_id)
        run_id: str | None = None
        try:
            begun = runs.Begun(schedules.BY_SCHEDULE, work.request.request_id if work.request else None)
            result = run_cycle(self._record, self._settings, self._announce, run_id=work.run_id, begun=begun)
            run_id, outcome = result.run_id, f"{result.outcome}: {'; '.join(result.reasons)}"
        except KeyboardInterrupt:
            # Its request stays taken: the scheduler that goes on with the run settles it.
            self._note(ScheduleDecision.ENDED, "stopped; a scheduler goes on with it", run_id=work.run_id)
            raise
        except Refused as refused:
            # What the data decides is decided; the next cycle waits for the interval and for new conversations alone.
            outcome = f"refused: {refused}"
        except Failure as failure:
            log.warning("the cycle ended early: %s", failure)
            outcome = f"{ENDED_EARLY}: {failure}"
        except Exception as fault:
            log.exception("the cycle ended by a fault")
            outcome = f"{ENDED_EARLY} by a fault: {type(fault).__name__}: {fault}"
        if work.request is not None:
            runs.settle_request(self._record, work.request.request_id, state="done", run_id=run_id, outcome=outcome)
        self._note(ScheduleDecision.ENDED, outcome, run_id=run_id or work.run_id)

    def _note(self, decision: ScheduleDecision, reason: str, *, figures: str = "", run_id: str | None = None) -> None:
        """Enter a decision in the record, and say it; a look that found nothing new is silent. Figures change at each look."""
        schedules.note_decision(self._record, scheduler=os.uname().nodename, decision=decision, reason=reason, run_id=run_id)
        words = f"{decision.replace('_', ' ')}: {reason}" + (f" ({figures})" if figures else "")
        if words != self._told:
            self._told = words
            self._tell(words)


def _ended_early_lately(record: Record) -> bool:
    """Tell whether the newest cycle of a scheduler, whichever process that was, failed within the last hour."""
    end = schedules.latest_end(record)
    return (
        end is not None
        and end.reason.startswith(ENDED_EARLY)
        and _seconds_since(end.decided_at_utc) < SECONDS_BEFORE_NEXT_TRY
    )


def _resumed_in_vain(record: Record, run: runs.Run | None) -> str:
    """Return why a run is not resumed at once, or "" where it is."""
    times, last = schedules.resumed_in_vain(record, run.run_id) if run else (0, "")
    if run is None or times < RESUMES_AT_ONCE or _seconds_since(last) >= SECONDS_BEFORE_NEXT_TRY:
        return ""
    return (
        f"the run {run.run_id} was resumed {times} times and finished no stage; it goes on {_NEXT_TRY} after the last time"
    )


_NEXT_TRY = f"{SECONDS_BEFORE_NEXT_TRY / 3600:g} h"


def _seconds_since(moment_utc: str) -> float:
    """Return how long ago a moment was; one that is still to come, as where the clock was set back, was long ago."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment_utc)).total_seconds()
    return seconds if seconds >= 0 else math.inf


def _look_again_and_again(scheduler: _Scheduler, seconds: float, stop_asked: Callable[[], bool]) -> None:
    """Let APScheduler look every few seconds, in this thread, which alone hears signals; missed times come to one look.

    Raises KeyboardInterrupt when it is stopped.
    """
    from apscheduler.events import EVENT_JOB_SUBMITTED
    from apscheduler.executors.debug import DebugExecutor
    from apscheduler.schedulers.blocking import BlockingScheduler

    stopped = False

    def look() -> None:
        nonlocal stopped
        try:
            scheduler.look()
        except KeyboardInterrupt:
            # APScheduler would swallow it.
            stopped = True
        except Failure as failure:
            log.warning("the schedule could not look; it looks again: %s", failure)

    def end_where_asked(_event: object) -> None:
        if stopped or stop_asked():
            timer.shutdown(wait=False)

    # The executor that runs a job where the scheduler itself runs.
    timer = BlockingScheduler(timezone=UTC, executors={"default": DebugExecutor()})
    timer.add_job(
        look,
        "interval",
        seconds=seconds,
        next_run_time=datetime.now(UTC),
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,
    )
    timer.add_listener(end_where_asked, EVENT_JOB_SUBMITTED)
    timer.start()
    raise KeyboardInterrupt
