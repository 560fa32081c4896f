"""The end of a canary: what a scheduler asks at each look.

In: the record. Out: one sentence where a canary goes on, and "" where none does.
"""

from conversations import rollouts
from conversations.store import Record
from distill.settings import DistillSettings


def finish_canary(record: Record, settings: DistillSettings) -> str:
    """Say whether a canary goes on."""
    going = rollouts.running(record, rollouts.RolloutKind.CANARY)
    return f"{going.release_id} is on trial" if going else ""
