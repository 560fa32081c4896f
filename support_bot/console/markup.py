"""Pieces of the console's pages, with every word from outside escaped.

In: plain values. Out: HTML. Nothing that a customer, a student or a teacher wrote is ever read as Markdown or HTML here;
only `Markup`, which this module alone makes, goes in unescaped.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Tone: TypeAlias = Literal["good", "bad", "busy", "plain"]


@dataclass(frozen=True)
class Markup:
    """HTML that is safe as it stands."""

    html: str


Cell: TypeAlias = Markup | str | int | float | None


def shown(cell: Cell) -> str:
    """Return a cell as HTML: markup as it is, text escaped, nothing as a dash."""
    if isinstance(cell, Markup):
        return cell.html
    if cell is None or cell == "":
        return '<span class="none">–</span>'
    return html.escape(f"{cell:g}" if isinstance(cell, float) else str(cell))


def table(headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str) -> str:
    """Return a table, or one sentence when it has no rows."""
    body = "".join(f"<tr>{''.join(f'<td>{shown(cell)}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return note(empty)
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    grid = f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{grid}</div>'


def note(text: str) -> str:
    """Return one quiet sentence."""
    return f'<p class="note">{html.escape(text)}</p>'


def heading(text: str) -> str:
    """Return the heading of a part of a page."""
    return f"<h2>{html.escape(text)}</h2>"


def words(text: str) -> str:
    """Return a text as it was written, line breaks and all."""
    return f'<div class="words" dir="auto">{html.escape(text)}</div>'


def pill(text: str, tone: Tone = "plain") -> Markup:
    """Return a small label."""
    return Markup(f'<span class="pill {tone}">{html.escape(text)}</span>')


def code(text: str | None) -> Markup:
    """Return a name that a machine gave."""
    return Markup(f"<code>{html.escape(text)}</code>" if text else shown(None))


def two_lines(first: str, second: str) -> Markup:
    """Return a figure, and below it in small what it rests on; neither is broken."""
    small = f"<br><small>{html.escape(second)}</small>" if second else ""
    return Markup(f'<span class="figure">{html.escape(first)}{small}</span>')


def bar(share: float) -> Markup:
    """Return a progress bar for a share between 0 and 1."""
    percent = round(100 * min(1.0, max(0.0, share)))
    return Markup(
        f'<span class="bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="progress"><i style="width:{percent}%"></i></span> {percent} %'
    )


def moment(utc: str | None) -> Markup:
    """Return an ISO time as a person reads it, in UTC."""
    if not utc:
        return Markup(shown(None))
    whole = html.escape(utc)
    return Markup(f'<time datetime="{whole}" title="{whole}">{html.escape(utc[:16].replace("T", " "))}</time>')


def choices(items: Iterable[tuple[str, str, str]], *, chosen: str, empty: str) -> str:
    """Return a list of buttons from (key, first line, second line as HTML); a click tells the key."""
    rows = "".join(
        f'<li><button type="button" data-key="{html.escape(key)}" aria-pressed="{str(key == chosen).lower()}">'
        f'<span class="first" dir="auto">{html.escape(first)}</span><span class="second">{second}</span></button></li>'
        for key, first, second in items
    )
    return f'<ul class="choices">{rows}</ul>' if rows else note(empty)


# Tells Gradio which item of `choices` was clicked.
CHOICES_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-key]');
  if (!button) return;
  element.querySelectorAll('button[data-key]').forEach((each) => each.setAttribute('aria-pressed', String(each === button)));
  trigger('click', {key: button.dataset.key});
});
"""
