"""The tab Audit: who did what, and whether the chain of entries is whole.

In: the record. Out: the newest entries. Reads only.
"""

import gradio as gr

from conversations import audit
from conversations.store import Record
from support_bot.console import markup
from support_bot.console.desk import Desk, Drawing

SHOWN_ENTRIES = 100


def tab(desk: Desk) -> Drawing:
    """Lay the tab out and return how it is drawn anew."""
    entries = gr.HTML(apply_default_css=False, elem_id="audit")

    def draw() -> tuple[object, ...]:
        return (show_audit(desk.record),)

    return draw, [entries]


def show_audit(record: Record) -> str:
    """Return the audit's newest entries as HTML."""
    broken = audit.first_broken_entry(record)
    chain = markup.pill("the chain is broken", "bad") if broken else markup.pill("the chain is whole", "good")
    rows = markup.table(
        ("#", "when (UTC)", "who", "did what", "to what", "detail"),
        [
            (
                each.audit_seq,
                markup.moment(each.happened_at_utc),
                each.actor,
                each.action,
                markup.code(each.target),
                "" if each.detail_json == "{}" else each.detail_json,
            )
            for each in audit.newest(record, SHOWN_ENTRIES)
        ],
        empty="Nobody has done anything yet.",
    )
    return f"<p>{chain.html} {markup.shown(broken) if broken else ''}</p>{rows}"
