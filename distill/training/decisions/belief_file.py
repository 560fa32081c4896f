"""What teachers believed, by decision, out of a file that need not fit into memory.

In: `assemble/soft_labels.jsonl`. Out: the soft labels of a dataset row, in the student's vocabulary.
"""

import re
from pathlib import Path

from pydantic import ValidationError

from conversations.errors import OperatorError
from distill.rows import DatasetRow, SoftLabelRow, first_problem
from distill.training.decisions.beliefs import Alignment, OtherWords
from distill.training.decisions.training_row import SoftLabels

# A line begins with its decision, so that the others need not be read whole.
_DECISION = re.compile(rb'\{"decision_id":"([^"\\]*)"')


class BeliefFile:
    """Finds the beliefs for a decision by where its line begins."""

    def __init__(self, path: Path, alignment: Alignment) -> None:
        """Raise OperatorError with file and line where a line does not begin with its decision."""
        self._path = path
        self._alignment = alignment
        self._places: dict[str, tuple[int, int]] = {}
        offset = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                found = _DECISION.match(line)
                if found is None:
                    raise self._not_a_row(number, "it does not begin with its decision_id")
                self._places[found[1].decode("utf-8", "replace")] = (number, offset)
                offset += len(line)

    def of(self, decision: DatasetRow, answer_ids: tuple[int, ...]) -> SoftLabels | None:
        """Return the soft labels of a row, None where its teacher gave none or none fits a token of the student.

        Raises OperatorError where the line is no row, or that of another answer.
        """
        place = self._places.get(decision.decision_id)
        if place is None:
            return None
        number, offset = place
        with self._path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            row = SoftLabelRow.model_validate_json(line)
        except ValidationError as error:
            raise self._not_a_row(number, first_problem(error)) from None
        try:
            return self._alignment.soft_labels(decision.messages[-1].content, answer_ids, row.tokens)
        except OtherWords:
            raise self._not_a_row(number, f"its tokens do not spell the answer of {decision.decision_id}") from None

    def _not_a_row(self, number: int, problem: str) -> OperatorError:
        return OperatorError(
            f"{self._path}:{number}: not a SoftLabelRow of this data set: {problem}; the file was changed by hand or by another "
            "version: assemble again in a new run, or set [train] soft_weight to 0"
        )
