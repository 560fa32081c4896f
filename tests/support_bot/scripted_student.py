"""A student server that does as it is told: fast, slow, dying in mid-answer or refusing. Speaks OpenAI completions."""

import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptedStudent:
    """A completions server on a free loopback port; its attributes may be changed while it runs."""

    def __init__(self) -> None:
        self.answer = "Please restart the router and wait two minutes."
        self.answers: dict[str, str] = {}  # by release, instead of `answer`
        self.exact_pieces: list[str] | None = None
        self.seconds_before_first = 0.0
        self.seconds_per_piece = 0.0
        self.dies_after_pieces: int | None = None
        self.ends_after_pieces: int | None = None
        self.refuses_with: int | None = None
        self.requests: list[dict[str, object]] = []
        self.disconnects = 0
        student = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                student.requests.append(body)
                try:
                    self._answer(body)
                except (BrokenPipeError, ConnectionResetError):
                    student.disconnects += 1
                    self.close_connection = True

            def _answer(self, body: dict[str, object]) -> None:
                if student.refuses_with is not None:
                    text = json.dumps({"error": {"message": "as scripted", "code": student.refuses_with}}).encode()
                    self.send_response(student.refuses_with)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self._nap(student.seconds_before_first)
                pieces = student.pieces(str(body["model"]))
                for number, piece in enumerate(pieces):
                    if student.dies_after_pieces == number:
                        # Linger of zero: the peer sees a reset, as when the process is killed.
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.connection.close()
                        self.close_connection = True
                        return
                    if student.ends_after_pieces == number:
                        break
                    self._send(piece, "stop" if number == len(pieces) - 1 else None)
                    self._nap(student.seconds_per_piece)
                self._event(
                    {
                        "choices": [],
                        "usage": {
                            "prompt_tokens": len(body["prompt"]),
                            "completion_tokens": len(pieces),
                            "total_tokens": 0,
                        },
                    }
                )
                self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")

            def _nap(self, seconds: float) -> None:
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    time.sleep(min(0.05, seconds))
                    self.wfile.flush()

            def _send(self, piece: str, finish_reason: str | None) -> None:
                logprobs = {"token_logprobs": [-0.5], "tokens": [piece], "text_offset": [0], "top_logprobs": None}
                self._event({"choices": [{"index": 0, "text": piece, "finish_reason": finish_reason, "logprobs": logprobs}]})

            def _event(self, more: dict[str, object]) -> None:
                event = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": "student", **more}
                self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def pieces(self, release_id: str) -> list[str]:
        """Cut the answer behind every space."""
        if self.exact_pieces is not None:
            return self.exact_pieces
        words = self.answers.get(release_id, self.answer).split(" ")
        return [word + " " for word in words[:-1]] + words[-1:]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
