"""What a vLLM server is asked over HTTP to keep releases in its memory: health, what it has, load, unload, a short answer.

In: a server's address. Out: typed answers, and a refusal with the server's own sentence. Knows nothing of the record.
The endpoints that load and unload have no protection of their own: the address must be loopback or a private network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

import httpx
from pydantic import BaseModel, ValidationError

from conversations.errors import OutsideError
from conversations.messages import Json


class LoadRefused(OutsideError):
    """The server answered that it cannot do what it was asked; the message is its sentence."""


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Problem(BaseModel):
    message: str


class _Refusal(BaseModel):
    error: _Problem


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]


class _Choice(BaseModel):
    text: str
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


@dataclass(frozen=True)
class ShortAnswer:
    """What a model said, and the log-probability of each of its tokens; None where the server could not write it as a number."""

    text: str
    token_logprobs: tuple[float | None, ...]


class VllmApi:
    """A client of one vLLM server. Close it, or use it as an asynchronous context manager."""

    def __init__(self, base_url: str, *, health_timeout_seconds: float, load_timeout_seconds: float) -> None:
        self.base_url = base_url
        self._health_timeout_seconds = health_timeout_seconds
        # Environment variables for proxies must not send a loopback call elsewhere.
        self._client = httpx.AsyncClient(base_url=base_url, timeout=load_timeout_seconds, trust_env=False)

    async def __aenter__(self) -> "VllmApi":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def problem(self) -> str:
        """Return what is wrong with the server's health, or an empty string when it is well."""
        try:
            answer = await self._client.get("/health", timeout=self._health_timeout_seconds)
        except httpx.HTTPError as error:
            return f"{self.base_url}/health: {type(error).__name__} {error}".rstrip()
        return "" if answer.is_success else f"{self.base_url}/health answered {answer.status_code}"

    async def model_names(self) -> frozenset[str]:
        """Return the names that the server answers to: its base and what it has loaded.

        Raises OutsideError when it does not answer as a vLLM server does.
        """
        try:
            answer = await self._client.get("/v1/models", timeout=self._health_timeout_seconds)
            answer.raise_for_status()
            return frozenset(model.id for model in _Models.model_validate_json(answer.content).data)
        except (httpx.HTTPError, ValidationError) as error:
            raise OutsideError(
                f"{self.base_url}/v1/models: {type(error).__name__} {error}; expected the list of an OpenAI-compatible "
                "server; check the address"
            ) from None

    async def load(self, release_id: str, weights_path: str) -> None:
        """Have the server load an adapter under the release's name.

        Raises LoadRefused with the server's sentence, OutsideError when it does not answer.
        """
        await self._post("/v1/load_lora_adapter", {"lora_name": release_id, "lora_path": weights_path})

    async def unload(self, release_id: str) -> None:
        """Have the server forget an adapter.

        Raises LoadRefused with the server's sentence, OutsideError when it does not answer.
        """
        await self._post("/v1/unload_lora_adapter", {"lora_name": release_id})

    async def complete(
        self, model: str, token_ids: Sequence[int], *, max_tokens: int, stop_token_ids: Sequence[int]
    ) -> ShortAnswer:
        """Return the greedy answer of a model to a prompt of token ids.

        Raises OutsideError when it does not answer, or otherwise than a vLLM server does.
        """
        body: dict[str, Json] = {
            "model": model,
            "prompt": list(token_ids),
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": 0,
            "stop_token_ids": list(stop_token_ids),
        }
        answer = await self._post("/v1/completions", body)
        try:
            choice = _Completion.model_validate_json(answer.content).choices[0]
        except (ValidationError, IndexError) as error:
            raise OutsideError(
                f"{self.base_url}/v1/completions: {type(error).__name__}; expected the completion of an OpenAI-compatible server"
            ) from None
        return ShortAnswer(choice.text, tuple(choice.logprobs.token_logprobs) if choice.logprobs else ())

    async def _post(self, path: str, body: Mapping[str, Json]) -> httpx.Response:
        try:
            answer = await self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise OutsideError(f"{self.base_url}{path}: {type(error).__name__} {error}".rstrip()) from None
        if not answer.is_success:
            raise LoadRefused(_sentence(answer))
        return answer


def _sentence(answer: httpx.Response) -> str:
    try:
        return _Refusal.model_validate_json(answer.content).error.message
    except ValidationError:
        return f"the server answered {answer.status_code}: {answer.text[:300]}"
