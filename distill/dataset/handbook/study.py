"""Study: what the student learns from the handbook itself, beside the conversations.

In: a handbook whose articles say what to answer, and the held-out questions. Out: rows for training alone: each sentence in
which an article tells what its customers notice, as a question, with the article's answer. So the student has met every
problem that the company has written down, also those that no customer has asked about yet. A sentence that is the
near-duplicate of a held-out question is left out and counted. Asks no teacher, and knows no customer's words but to stay away
from them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from conversations.messages import ChatMessage, Role, TurnStatus, content_hash
from conversations.prompt import SpokenTurn, messages_for_model
from conversations.redaction import RedactionRules
from distill.dataset.handbook.articles import Article, Handbook, described_in
from distill.dataset.similarity import near_duplicate_pairs
from distill.rows import DatasetRow, LabelsRow, MessageRow

TEACHER = "the handbook itself"


@dataclass(frozen=True)
class Study:
    """The rows, and how many sentences were left out because a held-out question is like them."""

    rows: tuple[DatasetRow, ...]
    twins_of_test: int


def study_handbook(
    handbook: Handbook,
    held_out: Sequence[str],
    *,
    system_prompt: str,
    rules: RedactionRules,
    near_duplicate_jaccard: float,
) -> Study:
    """Return what a student learns from the handbook. `held_out` are the questions of the test set."""
    rows = {row.decision_id: row for article in handbook.articles for row in _rows_of(article, system_prompt, rules)}
    texts = {name: row.messages[-2].content for name, row in rows.items()}
    tested = {f"test {place}": question for place, question in enumerate(held_out)}
    pairs = near_duplicate_pairs({**texts, **tested}, near_duplicate_jaccard)
    twins = {name for pair in pairs if tested.keys() & {*pair} for name in rows.keys() & {*pair}}
    return Study(tuple(row for name, row in rows.items() if name not in twins), len(twins))


def _rows_of(article: Article, system_prompt: str, rules: RedactionRules) -> Iterator[DatasetRow]:
    if not article.has_answer:
        return
    for sentence in (article.title, *described_in(article)):
        asked = SpokenTurn(Role.USER, TurnStatus.COMPLETE, sentence)
        redacted, _ = messages_for_model([asked], system_prompt=system_prompt, rules=rules)
        answer = ChatMessage(Role.ASSISTANT, article.passages[0].text)
        name = content_hash([article.article_id, sentence]).removeprefix("sha256:")[:24]
        yield DatasetRow(
            decision_id=f"study_{name}",
            # Each stands alone: the sentences of an article are no conversation, and are not learnt in one step.
            conversation_id=f"study_{name}",
            cluster_id=f"article_{article.article_id}",
            topic=article.topic,
            weight=1.0,
            teacher=TEACHER,
            labels=LabelsRow(answerable=True, articles=(article.article_id,)),
            passages=(article.passages[0].passage_hash,),
            messages=tuple(MessageRow.of(message) for message in (*redacted, answer)),
        )
