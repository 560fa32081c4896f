"""The gate's word on a release, as the record keeps it, and what an operator does against it.

In: a release's name. Out: why customers may not get it as a matter of course, and an entry in the audit where they get it anyway.
What the gate weighs is `distill`'s; here stands only what it said.
"""

from collections.abc import Mapping

from conversations import audit, releases, runs
from conversations.errors import OperatorError
from conversations.messages import Json
from conversations.store import Record, Transaction

OVERRIDDEN = "gate overridden"


def held_back(record: Record, release_id: str) -> str:
    """Return why a release may neither be a canary nor go into service without an override.

    "" where the gate of its run let it through, or it was in service before.
    """
    if was_in_service(record, release_id):
        return ""
    said = gate_word(record, release_id).get("outcome")
    if said == "promote":
        return ""
    return f"the gate said {said} of {release_id!r}" if said else f"the gate was never asked about {release_id!r}"


def was_in_service(record: Record, release_id: str) -> bool:
    """Tell whether a release is in service, or was once."""
    return bool(
        record.query("SELECT 1 FROM release_events WHERE release_id = ? AND event IN ('promoted', 'restored')", [release_id])
    )


def gate_word(record: Record, release_id: str) -> Mapping[str, Json]:
    """Return what the gate said of a release, as its run's report has it; nothing where it was never asked."""
    run_id = releases.release(record, release_id).run_id
    try:
        report = runs.run(record, run_id).report if run_id is not None else None
    except OperatorError:
        # Entered by hand, or by a record that was put together of others.
        return {}
    gate = report.get("gate") if report is not None and report.get("release_id") == release_id else None
    return gate if isinstance(gate, dict) else {}


def note_override(transaction: Transaction, release_id: str, gate: Mapping[str, Json], *, actor: str, reason: str) -> None:
    """Keep in the audit who acted against the gate and why, its word, and the numbers of the checks that did not pass."""
    checks = gate.get("checks")
    told: dict[str, Json] = {
        "reason": reason,
        "outcome": gate.get("outcome"),
        "reasons": gate.get("reasons"),
        "checks": [
            {name: check.get(name) for name in ("name", "outcome", "value", "bound")}
            for check in (checks if isinstance(checks, list) else [])
            if isinstance(check, dict) and check.get("outcome") != "passed"
        ],
    }
    rows = transaction.query("SELECT run_id FROM releases WHERE release_id = ?", [release_id])
    audit.note(transaction, actor, OVERRIDDEN, release_id, {**told, "run_id": rows[0]["run_id"]})
