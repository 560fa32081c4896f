"""What all answers of an evaluation are held against, made once.

In: a run's settings, its handbook and what its student has learned. Out: one value that scoring reads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from conversations.redaction import RedactionRules, SecondPass
from distill.dataset.handbook.articles import Handbook
from distill.dataset.second_pass import second_pass
from distill.dataset.verifying.knowledge import Knowledge, Shelf
from distill.evaluation.scoring.facts import Yardstick
from distill.evaluation.scoring.leaks import WordRun, stolen_runs
from distill.rows import DatasetRow, read_rows
from distill.run import Run, Stage
from distill.settings import DistillSettings, VerifyTable

_LEARNED = ("train.jsonl", "replay.jsonl")


@dataclass(frozen=True)
class Standards:
    """The handbook's facts and texts, the rules of verify and redaction, and the words that only other customers said.

    `allowed` is what the whole handbook says; None without one.
    """

    yardstick: Yardstick
    allowed: Knowledge | None
    table: VerifyTable
    rules: RedactionRules
    second_pass: SecondPass | None
    own_words: str
    stolen: frozenset[WordRun]


def standards_of(run: Run, handbook: Handbook | None, answers: Iterable[str]) -> Standards:
    """Return what the answers of a run are held against. `answers` are all that will be scored."""
    settings = run.settings
    allowed = Shelf(handbook).known(()) if handbook else None
    own_words = f"{settings.prompt.system}\n{settings.teach.instruction}"
    folder = run.folder / Stage.ASSEMBLE
    learned = (read_rows(folder / name, DatasetRow) for name in _LEARNED if (folder / name).is_file())
    printed = (*(allowed.texts if allowed else ()), *_whole_articles(handbook), own_words)
    return Standards(
        yardstick=_yardstick(settings, handbook),
        allowed=allowed,
        table=settings.verify,
        rules=settings.redaction.rules,
        second_pass=second_pass(settings.redaction),
        own_words=own_words,
        stolen=stolen_runs(answers, chain.from_iterable(learned), printed),
    )


def yardstick_of(run: Run) -> Yardstick:
    """Return what facts are held against: the handbook's facts and texts as they are now, and the words that decline."""
    return _yardstick(run.settings, Handbook.load(run.settings.handbook.path) if run.settings.handbook else None)


def _yardstick(settings: DistillSettings, handbook: Handbook | None) -> Yardstick:
    if handbook is None:
        return Yardstick({}, {}, settings.verify.declining_phrases)
    texts = {article.article_id: text for article, text in zip(handbook.articles, _whole_articles(handbook), strict=True)}
    return Yardstick(handbook.facts, texts, settings.verify.declining_phrases)


def _whole_articles(handbook: Handbook | None) -> list[str]:
    articles = handbook.articles if handbook else ()
    return ["\n".join([article.title, *(section.text for section in article.sections)]) for article in articles]
