"""A teacher that does as it is told: the OpenAI protocol on a loopback port, answering by a script."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Act:
    """What the teacher does with one request."""

    text: str | None = "Press the button twice."
    finish_reason: str = "stop"
    status: int = 200
    error: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    seconds: float = 0.0
    usage: tuple[int, int] | None = (100, 10)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    body: dict[str, Any]
    question: str
    key: str
    arrived_at: float


class ScriptedTeacher:
    """Answers each request by `script(question, how often it was asked before)`; `seen` holds what arrived."""

    def __init__(self, script: Callable[[str, int], Act] = lambda question, before: Act()) -> None:
        self.seen: list[Seen] = []
        self.under_way = 0
        self.most_under_way = 0
        self._lock = threading.Lock()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][-1]["content"]
                with teacher._lock:
                    before = sum(seen.question == question for seen in teacher.seen)
                    key = self.headers.get("Authorization", "").removeprefix("Bearer ")
                    teacher.seen.append(Seen(body, question, key, time.monotonic()))
                    teacher.under_way += 1
                    teacher.most_under_way = max(teacher.most_under_way, teacher.under_way)
                try:
                    act = script(question, before)
                    time.sleep(act.seconds)
                finally:
                    with teacher._lock:
                        teacher.under_way -= 1
                try:
                    self._answer(act, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def _answer(self, act: Act, body: dict[str, Any]) -> None:
                content = act.raw if act.raw is not None else json.dumps(_reply(act, body)).encode()
                self.send_response(act.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in act.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ScriptedTeacher":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


def _reply(act: Act, body: dict[str, Any]) -> dict[str, Any]:
    if act.status != 200:
        return {"error": {"message": act.error or f"scripted {act.status}", "type": "scripted"}}
    choice = {"index": 0, "message": {"role": "assistant", "content": act.text}, "finish_reason": act.finish_reason}
    usage = {} if act.usage is None else {"usage": {"prompt_tokens": act.usage[0], "completion_tokens": act.usage[1]}}
    return {"id": "scripted", "object": "chat.completion", "model": body["model"], "choices": [choice], **usage, **act.more}
