"""A teacher that does as it is told: the OpenAI protocol on a loopback port, chat and batches, answering by a script."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Act:
    """What the teacher does with one request; `cut` closes or resets the connection in the middle of its reply."""

    text: str | None = "Press the button twice."
    finish_reason: str = "stop"
    status: int = 200
    error: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    seconds: float = 0.0
    usage: tuple[int, int] | None = (100, 10)
    more: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)
    cut: str = ""


@dataclass(frozen=True)
class Seen:
    """One request as it arrived, to the byte; `left_at` is when its answer was on its way."""

    body: dict[str, Any]
    question: str
    key: str
    arrived_at: float
    raw: bytes = b""
    by_batch: bool = False


@dataclass
class ScriptedBatch:
    """What becomes of a batch: its status at last, how many looks it takes, and what happens to its lines."""

    status: str = "completed"
    looks: int = 1
    keep: Callable[[str], bool] = lambda custom_id: True
    more_lines: Sequence[str] = ()


class ScriptedTeacher:
    """Answers each request by `script(question, how often it was asked before)`; `seen` holds what arrived.

    With `by_body` the script is given the whole body and answers by that.
    """

    def __init__(
        self,
        script: Callable[[str, int], Act] = lambda question, before: Act(),
        *,
        by_body: Callable[[dict[str, Any]], Act] | None = None,
    ) -> None:
        self.seen: list[Seen] = []
        self.under_way = 0
        self.most_under_way = 0
        self.answered: list[tuple[str, float]] = []
        self.batch = ScriptedBatch()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._looks: dict[str, int] = {}
        self._script, self._by_body = script, by_body
        self._lock = threading.Lock()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                status, content = teacher._look(self.path.split("?")[0])
                self._send(status, content, {})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                key = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if not self.path.endswith("/chat/completions"):
                    status, content = teacher._file_or_batch(self.path, raw, self.headers.get("Content-Type", ""))
                    self._send(status, content, {})
                    return
                body = json.loads(raw)
                act = teacher._act(body, raw, key)
                try:
                    time.sleep(act.seconds)
                finally:
                    with teacher._lock:
                        teacher.under_way -= 1
                        teacher.answered.append((body["messages"][-1]["content"], time.monotonic()))
                try:
                    content = act.raw if act.raw is not None else json.dumps(reply_of(act, body)).encode()
                    if act.cut:
                        self._cut(act, content)
                    else:
                        self._send(act.status, content, act.headers)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def _cut(self, act: Act, content: bytes) -> None:
                self.close_connection = True
                if act.cut == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    return
                self.send_response(act.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _act(self, body: dict[str, Any], raw: bytes, key: str, *, by_batch: bool = False) -> Act:
        question = body["messages"][-1]["content"]
        with self._lock:
            before = sum(seen.question == question for seen in self.seen)
            self.seen.append(Seen(body, question, key, time.monotonic(), raw, by_batch))
            if not by_batch:
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
        return self._by_body(body) if self._by_body else self._script(question, before)

    def _file_or_batch(self, path: str, raw: bytes, content_type: str) -> tuple[int, bytes]:
        if path.endswith("/files"):
            boundary = content_type.partition("boundary=")[2].strip('"').encode()
            part = next(part for part in raw.split(b"--" + boundary) if b"filename=" in part)
            name = f"file-{len(self.files)}"
            self.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            found = {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch"}
            return 200, json.dumps({**found, "status": "processed"}).encode()
        asked = json.loads(raw)
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"],
            "completion_window": "24h", "status": "in_progress", "created_at": 1, "metadata": asked.get("metadata"),
        }  # fmt: skip
        return 200, json.dumps(self.batches[name]).encode()

    def _look(self, path: str) -> tuple[int, bytes]:
        last = path.rsplit("/", 1)[-1]
        if last == "content":
            return 200, self.files[path.split("/")[-2]]
        if last == "batches":
            return 200, json.dumps({"object": "list", "data": list(self.batches.values()), "has_more": False}).encode()
        if last not in self.batches:
            return 404, b'{"error": {"message": "no such batch"}}'
        self._looks[last] = self._looks.get(last, 0) + 1
        if self._looks[last] >= self.batch.looks and self.batches[last]["status"] == "in_progress":
            self._finish(self.batches[last])
        return 200, json.dumps(self.batches[last]).encode()

    def _finish(self, batch: dict[str, Any]) -> None:
        good: list[str] = []
        bad: list[str] = []
        for line in self.files[batch["input_file_id"]].decode().split("\n"):
            if not line:
                continue
            asked = json.loads(line)
            if not self.batch.keep(asked["custom_id"]):
                continue
            act = self._act(asked["body"], line.encode(), "", by_batch=True)
            response = {"status_code": act.status, "request_id": "r", "body": reply_of(act, asked["body"])}
            (good if act.status == 200 else bad).append(
                json.dumps(
                    {"id": "l", "custom_id": asked["custom_id"], "response": response, "error": None}, ensure_ascii=False
                )
            )
        good += self.batch.more_lines
        for key, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                batch[key] = f"file-{len(self.files)}"
                # In any order, as the protocol says.
                self.files[batch[key]] = "\n".join(reversed(lines)).encode()
        batch["status"] = self.batch.status

    def __enter__(self) -> "ScriptedTeacher":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


def reply_of(act: Act, body: dict[str, Any]) -> dict[str, Any]:
    """The completion, or the error, that an act stands for."""
    if act.status != 200:
        return {"error": {"message": act.error or f"scripted {act.status}", "type": "scripted"}, **act.more}
    message = {"role": "assistant", "content": act.text, **act.message}
    choice = {"index": 0, "message": message, "finish_reason": act.finish_reason}
    usage = {} if act.usage is None else {"usage": {"prompt_tokens": act.usage[0], "completion_tokens": act.usage[1]}}
    return {"id": "scripted", "object": "chat.completion", "model": body["model"], "choices": [choice], **usage, **act.more}
