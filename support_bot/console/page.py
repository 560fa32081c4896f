"""The operators' console: one page of tabs behind a login, on a port of its own.

In: a session and the operators. Out: one web application in which no path answers without a login, the login's own apart.
Customers' words are shown as text and nothing else.
"""

import html
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from support_bot.access import Door, OperatorDoor, Operators
from support_bot.console import audit, compare, conversations, releases, reports, runs
from support_bot.console.desk import QUIETLY, Desk, Drawing
from support_bot.console.login import add_login
from support_bot.session import Session
from support_bot.settings import QUEUE_LOOK_SECONDS, ServeTable

_LOG_OUT = '<form method="post" action="/logout"><button type="submit">Log out</button></form>'


def console_application(session: Session, operators: Operators) -> FastAPI:
    """Return the web application with the console at its root, behind its login."""
    table = session.settings.serve
    application = FastAPI(openapi_url=None)
    # With a policy of its own on the application, Gradio does not let every origin in.
    application.add_middleware(CORSMiddleware, allow_origins=[])
    application.add_middleware(OperatorDoor, operators=operators)
    application.add_middleware(Door)
    add_login(application, operators, session.stored, table.brand)
    gr.mount_gradio_app(
        application,
        _page(Desk(session.record, operators, session.settings.redaction.rules), table),
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        theme=gr.themes.Base(
            primary_hue="teal",
            neutral_hue="slate",
            font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css_paths=[Path(__file__).with_name("style.css")],
        head='<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
    )
    return application


def _page(desk: Desk, table: ServeTable) -> gr.Blocks:
    with gr.Blocks(title=f"{table.brand} · console", analytics_enabled=False, fill_width=True) as page:
        with gr.Row(elem_id="top"):
            gr.HTML(
                f'<h1><span class="brand">{html.escape(table.brand)}</span>Operators\' console</h1>{_LOG_OUT}',
                elem_id="title",
                apply_default_css=False,
            )
        with gr.Tabs():
            with gr.Tab("Conversations") as conversations_tab:
                first = conversations.tab(desk)
            drawings: list[tuple[gr.Tab, Drawing]] = [(conversations_tab, first)]
            with gr.Tab("Compare") as compare_tab:
                drawings.append((compare_tab, compare.tab(desk)))
            with gr.Tab("Runs") as runs_tab:
                drawing, runs_timer = runs.tab(desk)
                drawings.append((runs_tab, drawing))
            with gr.Tab("Reports") as reports_tab:
                drawings.append((reports_tab, reports.tab(desk)))
            with gr.Tab("Releases") as releases_tab:
                drawing, releases_timer = releases.tab(desk)
                drawings.append((releases_tab, drawing))
            with gr.Tab("Audit") as audit_tab:
                drawings.append((audit_tab, audit.tab(desk)))
        for tab, (draw, outputs) in drawings:
            tab.select(draw, None, outputs, **QUIETLY)
            # Runs and releases are looked at every few seconds, but only by those who look.
            tab.select(_timers_while(tab is runs_tab, tab is releases_tab), None, [runs_timer, releases_timer], **QUIETLY)
        draw_first, outputs = first
        page.load(draw_first, None, outputs, **QUIETLY)
    page.queue(api_open=False)
    page._queue.sleep_when_free = QUEUE_LOOK_SECONDS
    return page


def _timers_while(*are_looked_at: bool) -> Callable[[], tuple[gr.Timer, ...]]:
    return lambda: tuple(gr.Timer(active=is_looked_at) for is_looked_at in are_looked_at)
