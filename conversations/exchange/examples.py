"""Examples of a data set's files, entered in the record like conversations, so that lineage and erasure reach them too.

In: conversations as a line told them, each under a name made of its words. Out: how each stands in the record. Entering one again
adds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from conversations.exchange.arrivals import enter
from conversations.exchange.formats import ImportedConversation
from conversations.exchange.line_facts import LineRejected
from conversations.language import language_of
from conversations.messages import Consent, Role
from conversations.store import Record

CHANNEL = "dataset"
_AT_ONCE = 200


@dataclass(frozen=True)
class Entered:
    """How an example stands in the record: its consent, or why it must not be there."""

    consent: Consent
    refused: str = ""


def enter_examples(record: Record, examples: Sequence[ImportedConversation]) -> dict[str, Entered]:
    """Enter examples and return how each stands, by its source id."""
    entered: dict[str, Entered] = {}
    for start in range(0, len(examples), _AT_ONCE):
        # A piece at a time, so that customers who chat meanwhile wait for one piece and not for all.
        with record.write() as transaction:
            for each in examples[start : start + _AT_ONCE]:
                asked = next((message.content for message in each.messages if message.role is Role.USER), "")
                try:
                    enter(transaction, each, each.language or language_of(asked), channel=CHANNEL)
                except LineRejected as rejection:
                    entered[each.source_id] = Entered(Consent.NO, str(rejection))
                    continue
                row = transaction.query("SELECT consent FROM conversations WHERE source_id = ?", [each.source_id])[0]
                entered[each.source_id] = Entered(Consent(str(row["consent"])))
    return entered
