"""The embeddings of decisions' questions, kept so that a question is embedded once in the life of the record.

In and out: bytes by decision, half-precision floats of the model that is named. Knows no model and no arithmetic.
"""

from collections.abc import Mapping

from conversations.store import Record


def put_vectors(record: Record, model: str, vectors: Mapping[str, bytes]) -> None:
    """Keep the vectors of decisions that the record has; one of an earlier model is replaced."""
    with record.write() as transaction:
        for decision_id, vector in vectors.items():
            transaction.execute(
                # As a literal: cells are texts and numbers everywhere else, and SQLite's unhex is younger than Debian's SQLite.
                f"INSERT INTO decision_vectors SELECT decision_id, ?, x'{vector.hex()}' FROM decisions WHERE decision_id = ? "
                "ON CONFLICT (decision_id) DO UPDATE SET model = excluded.model, vector = excluded.vector",
                [model, decision_id],
            )


def vectors(record: Record, model: str) -> dict[str, bytes]:
    """Return the vectors that a model made, by decision."""
    rows = record.query("SELECT decision_id, hex(vector) AS vector FROM decision_vectors WHERE model = ?", [model])
    return {str(row["decision_id"]): bytes.fromhex(str(row["vector"])) for row in rows}
