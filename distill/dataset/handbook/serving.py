"""The handbook teacher's HTTP server: the OpenAI chat completions protocol in front of a search in the handbook.

In: requests of any OpenAI client. Out: completions, streamed or whole, that name the passages they rest on
(`handbook_passages`) and say in `system_fingerprint` who speaks, so that nobody takes it for a large model. No invented
prices and no pauses. Token counts are words times 4/3. It must never open a connection of its own.
"""

import asyncio
import hmac
import json
import logging
import math
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conversations.errors import OperatorError
from conversations.messages import ChatMessage, Json, Role, new_name
from conversations.settings import secret
from distill.dataset.handbook.answering import HandbookAnswer, HandbookTeacher
from distill.dataset.handbook.articles import Handbook
from distill.dataset.similarity import Embedder, load_embedder
from distill.settings import DistillSettings, handbook_vectors

MODEL = "handbook"
FINGERPRINT = "handbook-teacher (search by meaning in the handbook, no large language model)"

log = logging.getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")
    type: str
    text: str = ""


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[_Part] | None = None

    def spoken(self) -> ChatMessage:
        """Return the message as the record knows it; what is neither customer nor assistant counts as system."""
        parts = self.content if isinstance(self.content, list) else [_Part(type="text", text=self.content or "")]
        role = Role(self.role) if self.role in set(Role) else Role.SYSTEM
        return ChatMessage(role, "\n".join(part.text for part in parts))


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class _Body(BaseModel):
    """What is read of a request; sampling options have no meaning here and are left alone."""

    model_config = ConfigDict(extra="ignore")
    model: str
    messages: list[_Message] = Field(min_length=1)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=1)


class _Completion(BaseModel):
    """An answer as it goes out: the words that fit, why it ends, and what it took."""

    completion_id: str
    created: int
    text: str
    finish_reason: str
    passages: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int

    def usage(self) -> dict[str, Json]:
        """Return the usage in OpenAI's shape."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def envelope(self, kind: str, choices: list[Json]) -> dict[str, Json]:
        """Return the answer's frame around its choices."""
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": MODEL,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "handbook_passages": list(self.passages),
        }


def build_app(handbook: Handbook, embedder: Embedder, *, api_key: str = "", vectors_in: Path | None = None) -> FastAPI:
    """Return the application; `api_key` empty means that none is asked for; `vectors_in` keeps the handbook's embeddings."""
    teacher = HandbookTeacher(handbook, embedder, vectors_in)
    app = FastAPI(title="The handbook teacher", docs_url=None, redoc_url=None, openapi_url=None)

    def refused(request: Request) -> JSONResponse | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not api_key or hmac.compare_digest(given.encode(), api_key.encode()):
            return None
        return _error(401, "the API key is missing or wrong", "invalid_request_error", "invalid_api_key")

    @app.get("/health")
    async def health() -> dict[str, Json]:
        return {"status": "ok", "articles": len(handbook.articles)}

    @app.get("/v1/models", response_model=None)
    async def models(request: Request) -> Response:
        known: Json = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": FINGERPRINT}]}
        return refused(request) or JSONResponse(known)

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(request: Request) -> Response:
        if refusal := refused(request):
            return refusal
        try:
            body = _Body.model_validate_json(await request.body())
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "body"
            return _error(400, f"{where}: {problem['msg']}", "invalid_request_error", None)
        if body.model != MODEL:
            message = f"the model {body.model!r} does not exist; this server has {MODEL!r} alone"
            return _error(404, message, "invalid_request_error", "model_not_found")
        began = time.monotonic()
        spoken = [message.spoken() for message in body.messages]
        answer = await asyncio.to_thread(teacher.answer, spoken)
        completion = _completion(body, spoken, answer)
        log.info("answered out of %s in %.0f ms", answer.articles or "nothing", (time.monotonic() - began) * 1000)
        if body.stream:
            usage_wanted = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_events(completion, usage_wanted), media_type="text/event-stream")
        message_out: Json = {"role": "assistant", "content": completion.text, "refusal": None}
        choice: Json = {"index": 0, "message": message_out, "logprobs": None, "finish_reason": completion.finish_reason}
        return JSONResponse({**completion.envelope("chat.completion", [choice]), "usage": completion.usage()})

    @app.exception_handler(404)
    async def no_such_path(request: Request, _: Exception) -> Response:
        return _error(
            404, f"{request.url.path}: no such path; POST /v1/chat/completions answers", "invalid_request_error", None
        )

    return app


def serve_teacher(settings: DistillSettings, host: str, port: int) -> None:
    """Serve the handbook teacher until it is stopped.

    Raises OperatorError without a handbook, when the port is taken, or when the configured key is not set.
    """
    import uvicorn

    if settings.handbook is None:
        raise OperatorError(
            f"{settings.settings_file}: the table [handbook] is missing; the handbook teacher has nothing to answer out of; "
            "add it with a path, or use another teacher"
        )
    handbook = Handbook.load(settings.handbook.path)
    variables = {table.api_key_variable for table in settings.teachers.values() if table.kind == "handbook"} - {""}
    api_key = secret(sorted(variables)[0], "the handbook teacher asks its callers for it") if variables else ""
    listener = _listen(host, port)
    with listener:
        app = build_app(handbook, load_embedder(), api_key=api_key, vectors_in=handbook_vectors(settings))
        log.info("the handbook teacher answers on http://%s:%d/v1 out of %d articles", host, port, len(handbook.articles))
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the slow loading begins, so that a taken one is told at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"{host}:{port}: the handbook teacher cannot listen there: {error.strerror}; "
            "stop the program that holds the port, or give another with --port"
        ) from None
    return listener


def _completion(body: _Body, spoken: list[ChatMessage], answer: HandbookAnswer) -> _Completion:
    limit = body.max_completion_tokens or body.max_tokens
    pieces = re.findall(r"\s*\S+", answer.text)
    kept = pieces if limit is None else pieces[: max(1, limit * 3 // 4)]
    return _Completion(
        completion_id=new_name("chatcmpl"),
        created=int(time.time()),
        text="".join(kept),
        finish_reason="stop" if len(kept) == len(pieces) else "length",
        passages=answer.passages,
        prompt_tokens=_tokens(" ".join(message.content for message in spoken)),
        completion_tokens=_tokens("".join(kept)),
    )


def _tokens(text: str) -> int:
    return math.ceil(len(text.split()) * 4 / 3)


async def _events(completion: _Completion, usage_wanted: bool) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed answer, a word at a time."""

    def event(delta: dict[str, Json], finish_reason: str | None = None) -> str:
        choice: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(completion.envelope("chat.completion.chunk", [choice]))

    yield event({"role": "assistant", "content": ""})
    for piece in re.findall(r"\s*\S+", completion.text):
        yield event({"content": piece})
    yield event({}, completion.finish_reason)
    if usage_wanted:
        yield _event({**completion.envelope("chat.completion.chunk", []), "usage": completion.usage()})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Json]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, kind: str, code: str | None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status)
