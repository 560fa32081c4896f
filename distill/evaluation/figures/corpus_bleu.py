"""BLEU of a model's answers as a whole, against the right answers of a data set's file or people's replies in the log.

In: rows, and the references by decision. Out: one figure with the signature that says how it was counted (Post 2018, "A Call for
Clarity in Reporting BLEU Scores"), as sacreBLEU writes it. The mean of single answers' BLEU is another metric.
"""

from collections.abc import Mapping, Sequence

from conversations.messages import Json
from distill.evaluation.scoring.row import references_of
from distill.rows import DatasetRow, EvaluationRow


def references_by_decision(rows: Sequence[DatasetRow]) -> dict[str, tuple[str, ...]]:
    """Return what good answers to each decision are known to be; a decision without any is left out."""
    return {row.decision_id: found for row in rows if (found := references_of(row))}


def corpus_bleu(rows: Sequence[EvaluationRow], references: Mapping[str, Sequence[str]]) -> Json:
    """Return a model's corpus BLEU from 0 to 1, or None where nothing has a reference."""
    answered = [row for row in rows if not row.failure and references.get(row.decision_id)]
    if not answered:
        return None
    from sacrebleu.metrics import BLEU

    most = max(len(references[row.decision_id]) for row in answered)
    # One stream for the first reference of each, one for the second, and so on; sacreBLEU takes None where there is none.
    streams = [[_at(references[row.decision_id], place) for row in answered] for place in range(most)]
    bleu = BLEU()
    score = bleu.corpus_score([row.text for row in answered], streams)
    return {"value": round(score.score / 100, 6), "n": len(answered), "signature": str(bleu.get_signature())}


def _at(texts: Sequence[str], place: int) -> str | None:
    return texts[place] if place < len(texts) else None
