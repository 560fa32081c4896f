"""What the supervisor needs of vLLM, as it is told: healthy, ill, refusing to load, dying. In this process or in its own.

As a program: `scripted_vllm.py PORT BASE_NAME CHILD_FILE [PLAN]`; it starts a child in its process group, as vLLM starts its
engine, and writes the child's number to CHILD_FILE. PLAN `dies-on-load` ends the process at the first load, `garbage` answers
with log-probabilities that are no numbers, `slow-to-end` does not hear when it is asked to end.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ScriptedVllm:
    """A server on a loopback port; its attributes may be changed while it runs."""

    def __init__(self, base_name: str, port: int = 0, plan: str = "") -> None:
        self.names = [base_name]
        self.health_status = 200
        self.refusals: dict[str, str] = {}
        self.seconds_to_load = 0.0
        self.seconds_to_answer = 0.0
        self.says: dict[str, str] = {}  # by name, instead of a word
        self.logprobs: dict[str, float | None] = {}  # by name, instead of -0.5
        self.lost_after_load: set[str] = set()
        self.asked: list[tuple[str, list[int]]] = []
        self.load_requests: list[str] = []
        self.unload_requests: list[str] = []
        self.plan = plan
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/health":
                    self._answer(script.health_status, {})
                else:
                    self._answer(200, {"object": "list", "data": [{"id": name} for name in script.names]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/completions":
                    self._answer(*script.complete(body["model"], body["prompt"]))
                else:
                    self._answer(*script.act(self.path, body["lora_name"]))

            def _answer(self, status: int, answer: object) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", port), Handler)
        self.base_url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "ScriptedVllm":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def complete(self, name: str, prompt: list[int]) -> tuple[int, object]:
        self.asked.append((name, prompt))
        time.sleep(self.seconds_to_answer)
        if name not in self.names or name in self.lost_after_load:
            return 404, {"error": {"message": f"The model `{name}` does not exist.", "code": 404}}
        logprob = None if self.plan == "garbage" else self.logprobs.get(name, -0.5)
        choice = {"text": self.says.get(name, "word"), "logprobs": {"token_logprobs": [logprob]}, "finish_reason": "stop"}
        return 200, {"choices": [choice]}

    def act(self, path: str, name: str) -> tuple[int, object]:
        if path == "/v1/unload_lora_adapter":
            self.unload_requests.append(name)
            self.names.remove(name)
            return 200, f"Success: {name} removed"
        self.load_requests.append(name)
        if self.plan == "dies-on-load":
            os._exit(137)
        time.sleep(self.seconds_to_load)
        if name in self.refusals:
            return 500, {"error": {"message": self.refusals[name], "type": "InternalServerError", "code": 500}}
        self.names.append(name)
        return 200, f"Success: {name} added"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    port, base_name, child_file, plan = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), "".join(sys.argv[4:])
    if plan == "wrong-arguments":
        say("api_server.py: error: unrecognized arguments: --nonsense")
        sys.exit(2)
    if plan == "no-memory":
        say("ValueError: No available memory for the cache blocks")
        sys.exit(1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    child_file.write_text(str(child.pid), encoding="utf-8")
    if plan == "slow-to-end":
        signal.signal(signal.SIGTERM, lambda *_: None)
    say("scripted vLLM is up")
    with ScriptedVllm(base_name, port, plan):
        time.sleep(600)
