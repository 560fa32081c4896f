"""The handbook: what the company has written down, as articles, facts and passages that an answer can rest on.

In: a folder of Markdown files, or one JSON Lines file with `id`, `title`, `text` (other keys are left alone). Out: frozen
values. A Markdown file may begin with YAML front matter (`id`, `title`, `topic`, `facts`); without it the file's name is the
id and its first heading the title. Its sections are made by `##` headings.

One convention: a section called "Answer" is what the handbook teacher says, whole. The other sections of such an article
only help to find it. An article without one is cut into passages of a paragraph's size, at sentence ends, and the passage
that fits a question best is what the handbook teacher says.

Knows nothing of models, embeddings or conversations.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from conversations.errors import OperatorError
from conversations.messages import Json, content_hash
from distill.rows import FactRow

MAX_PASSAGE_WORDS = 90
ANSWER_HEADING = "answer"

_MIN_PASSAGE_WORDS = 25
_LIST_MARK = re.compile(r"[-*+]\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[^\W_a-z])")
# A fenced block is matched whole, so that a comment in it is no heading.
_HEADING = re.compile(
    r"^(?P<fence>```|~~~).*?^(?P=fence)|^(?P<level>#{1,2})[ \t]+(?P<title>[^\n]*?)[ \t]*:?[ \t]*#*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Passage:
    """A piece of an article that an answer can rest on; its hash names its words."""

    passage_hash: str
    article_id: str
    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of an article; the heading is empty before the first `##`."""

    heading: str
    text: str


@dataclass(frozen=True)
class Article:
    """One article. `passages` are what may be said of it: the answer alone where there is one."""

    article_id: str
    title: str
    topic: str
    sections: tuple[Section, ...]
    facts: tuple[FactRow, ...]
    passages: tuple[Passage, ...]

    @property
    def has_answer(self) -> bool:
        """Tell whether the article says itself what to answer."""
        return any(section.heading.casefold() == ANSWER_HEADING for section in self.sections)


@dataclass(frozen=True)
class Handbook:
    """All articles, in the order of their ids."""

    articles: tuple[Article, ...]

    @classmethod
    def load(cls, path: Path) -> "Handbook":
        """Read a handbook.

        Raises OperatorError, naming file and line, for what cannot be read, and for a handbook without articles.
        """
        if path.is_dir():
            found = [_markdown_article(file) for file in sorted(path.rglob("*.md")) if file.is_file()]
        elif path.is_file():
            found = list(_json_lines_articles(path))
        else:
            raise OperatorError(
                f"{path}: no such handbook; expected a folder of Markdown files or a JSON Lines file with id, title, text; "
                "mend [handbook] path, or remove the table to work without a handbook"
            )
        if not found:
            raise OperatorError(
                f"{path}: the handbook holds no article; add Markdown files (*.md) or lines, or another path"
            )
        places: dict[str, str] = {}
        for article, place in found:
            if article.article_id in places:
                raise OperatorError(
                    f"{place}: the id {article.article_id!r} stands at {places[article.article_id]} already; "
                    "expected a different id for each article; rename one"
                )
            places[article.article_id] = place
        return cls(tuple(sorted((article for article, _ in found), key=lambda each: each.article_id)))

    @cached_property
    def facts(self) -> Mapping[str, FactRow]:
        """Every fact, by `<article>.<fact>`."""
        return {fact.fact_id: fact for article in self.articles for fact in article.facts}

    @cached_property
    def passages(self) -> Mapping[str, Passage]:
        """Every passage, by its hash."""
        return {passage.passage_hash: passage for article in self.articles for passage in article.passages}

    @cached_property
    def by_id(self) -> Mapping[str, Article]:
        """Every article, by its id."""
        return {article.article_id: article for article in self.articles}

    @cached_property
    def digest(self) -> str:
        """The digest of everything that the handbook says."""
        return content_hash(
            [[a.article_id, a.title, a.topic, [[s.heading, s.text] for s in a.sections]] for a in self.articles]
        )


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    says: str
    match: tuple[str, ...]

    @field_validator("match")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if not patterns:
            raise ValueError("no expression shows that an answer states this fact; write at least one")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
            if re.search(pattern, ""):
                raise ValueError(f"{pattern!r} is found in every text; expected words or numbers of the fact")
        return patterns


class _FrontMatter(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str
    title: str
    topic: str = ""
    facts: tuple[_Fact, ...] = ()

    @field_validator("facts")
    @classmethod
    def _are_named_apart(cls, facts: tuple[_Fact, ...]) -> tuple[_Fact, ...]:
        names = [fact.id for fact in facts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} names more than one fact; give each an id of its own")
        return facts


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str
    title: str
    text: str


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a line break between paragraphs or list items ends one too."""
    lines = (_LIST_MARK.sub("", line.strip()) for line in text.splitlines())
    return [piece.strip() for line in lines for piece in _SENTENCE_END.split(line) if piece.strip()]


def described_in(article: Article) -> list[str]:
    """Return the wordings in which an article with an answer of its own tells what the answer is for.

    A sentence is one, and so is a list's item, however many sentences it has.
    """
    told = [section.text for section in article.sections if section.heading.casefold() != ANSWER_HEADING]
    lines = [line.strip() for text in told for line in text.splitlines()]
    return [
        each
        for line in lines
        for each in ([_LIST_MARK.sub("", line)] if _LIST_MARK.match(line) else sentences(line))
        if each
    ]


def _markdown_article(file: Path) -> tuple[Article, str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OperatorError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from None
    matter, body, body_line = _split_front_matter(file, text)
    heading = re.search(r"^#\s+(.+?)\s*#*$", body, re.MULTILINE)
    known = {"id": file.stem, "title": heading.group(1) if heading else file.stem, **matter}
    try:
        front = _FrontMatter.model_validate(known)
    except ValidationError as error:
        raise OperatorError(f"{file}:1: {_first_problem(error)}; mend the front matter between the --- lines") from None
    sections = tuple(_sections(body))
    if not any(section.text for section in sections):
        raise OperatorError(f"{file}:{body_line}: the article has no text; write some below its title, or remove the file")
    facts = tuple(FactRow(fact_id=f"{front.id}.{fact.id}", says=fact.says, match=fact.match) for fact in front.facts)
    return _article(front.id, front.title, front.topic, sections, facts), f"{file}:1"


def _split_front_matter(file: Path, text: str) -> tuple[dict[str, Json], str, int]:
    """Return the front matter, the rest, and the line where the rest begins."""
    if not text.startswith("---\n"):
        return {}, text, 1
    head, fence, body = text[4:].partition("\n---\n")
    if not fence:
        raise OperatorError(f"{file}:1: the front matter is not closed; end it with a line that holds --- alone")
    try:
        matter = yaml.safe_load(head)
    except yaml.reader.ReaderError as error:
        raise OperatorError(f"{file}:1: the front matter holds a character that text cannot have ({error.reason})") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 2 if error.problem_mark else 1
        raise OperatorError(f"{file}:{line}: the front matter is not valid YAML: {error.problem}; mend that line") from None
    if not isinstance(matter, dict):
        raise OperatorError(f"{file}:2: the front matter is {matter!r}; expected keys such as id: and title:")
    return matter, body, head.count("\n") + 4


def _sections(body: str) -> Iterator[Section]:
    """Yield the sections of a Markdown text; the title line itself belongs to none."""
    heading, start = "", 0
    for found in _HEADING.finditer(body):
        if found["fence"]:
            continue
        before = body[start : found.start()].strip()
        if before:
            yield Section(heading, before)
        heading, start = (found["title"] if found["level"] == "##" else ""), found.end()
    rest = body[start:].strip()
    if rest:
        yield Section(heading, rest)


def _json_lines_articles(path: Path) -> Iterator[tuple[Article, str]]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            place = f"{path}:{number}"
            try:
                line = _Line.model_validate_json(raw)
            except ValidationError as error:
                raise OperatorError(
                    f"{place}: {_first_problem(error)}; expected one JSON object with id, title and text; mend that line"
                ) from None
            if not line.text.strip():
                raise OperatorError(f"{place}: the text of {line.id!r} is empty; write some, or remove the line")
            yield _article(line.id, line.title, "", (Section("", line.text.strip()),), ()), place


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where or 'the line'} = {json.dumps(problem['input'], default=str)[:80]}: {problem['msg']}"


def _article(article_id: str, title: str, topic: str, sections: tuple[Section, ...], facts: tuple[FactRow, ...]) -> Article:
    answers = [section.text for section in sections if section.heading.casefold() == ANSWER_HEADING]
    said = [" ".join(answers)] if answers else [piece for section in sections for piece in _cut(section)]
    passages = tuple(Passage(content_hash([article_id, title, text]), article_id, title, text) for text in said)
    return Article(article_id, title, topic, sections, facts, passages)


def _cut(section: Section) -> Iterator[str]:
    """Yield passages of at most MAX_PASSAGE_WORDS: whole paragraphs where they fit, cut at sentence ends otherwise."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", section.text):
        for piece in _pieces(paragraph.split("\n")):
            if held and _words(held) + len(piece.split()) > MAX_PASSAGE_WORDS:
                yield " ".join(held)
                held = []
            held.append(piece)
        # A heading or a single line stays with what follows it.
        if _words(held) >= _MIN_PASSAGE_WORDS:
            yield " ".join(held)
            held = []
    if held:
        yield " ".join(held)


def _pieces(lines: Sequence[str]) -> Iterator[str]:
    for sentence in sentences("\n".join(lines)):
        words = sentence.split()
        for start in range(0, len(words), MAX_PASSAGE_WORDS):
            yield " ".join(words[start : start + MAX_PASSAGE_WORDS])


def _words(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)
