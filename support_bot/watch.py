"""The watch over a canary: looks at its figures every few seconds, and takes it back when it breaks one of its rules.

In: the record. Out: nothing, or a canary that is rolled back, in the record, in its audit and in the log. Every chat process watches;
the record lets one of them act. Looks at nothing while no canary goes on.
"""

import asyncio
import logging

from conversations import online, rollouts
from conversations.async_record import AsyncRecord
from conversations.errors import OutsideError
from conversations.rollouts import RolloutKind
from conversations.store import Record

SECONDS_BETWEEN_LOOKS = 2.0
ACTOR = "support-bot serve"

_log = logging.getLogger(__name__)


async def watch_canary(stored: AsyncRecord) -> None:
    """Look for ever; whoever started this cancels it."""
    while True:
        try:
            broken = await stored.read(broken_rule)
            if broken is not None:
                rollout_id, reason = broken
                await stored.write(take_back, rollout_id, reason)
        except OutsideError as error:
            # The next look may find the disk or the lock free again; till then the canary goes on.
            _log.warning("the canary could not be looked at: %s", error)
        except Exception:  # noqa: BLE001  # a bug that ended the watch would leave every canary unwatched, and no word of it
            _log.exception("the canary could not be looked at")
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def broken_rule(record: Record) -> tuple[str, str] | None:
    """Return the canary that breaks a rule, by its rollout_id, and the rule with the numbers; None where all is well."""
    canary = rollouts.running(record, RolloutKind.CANARY)
    if canary is None:
        return None
    met = online.figures_of(record, canary.release_id, since_utc=canary.started_at_utc)
    reason = online.violated(canary, met)
    return (canary.rollout_id, reason) if reason else None


def take_back(record: Record, rollout_id: str, reason: str) -> bool:
    """Take a canary back for a reason; False where somebody else was faster."""
    acted = rollouts.take_back(record, rollout_id, actor=ACTOR, reason=reason)
    if acted:
        release_id = rollouts.rollout(record, rollout_id).release_id
        _log.warning("the canary of %s is rolled back: %s", release_id, reason)
    return acted
