"""The OpenAI Batch API as a second transport: requests go up as one file, answers come down in any order, at a share of the price.

In: requests. Out: replies in the record, under the same hashes as those of the chat, so that whoever asks next finds them paid.
Money is reserved before a file leaves and settled when it is collected. A batch is noted in the record before it is sent: a run
that was killed while it waited finds it again, at the provider too.
"""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conversations import batches
from conversations.batches import BatchState, Paid, Waiting, Wanted
from conversations.errors import OperatorError, OutsideError
from conversations.messages import Json, storable_text
from conversations.replies import TeacherReply
from distill.dataset.teaching.asking import Asker, priced
from distill.dataset.teaching.budget import most_it_costs
from distill.dataset.teaching.replies import Fault, cost_usd, read_reply
from distill.dataset.teaching.requests import Request

if TYPE_CHECKING:
    from openai.types import Batch

ROUNDS = 2
_OUR_NAME = "support_bot_batch"
# Finds whose a line is that is no JSON any more.
_NAMED = re.compile(r'"custom_id"\s*:\s*"(sha256:[0-9a-f]{64})"')
_ENDED = ("completed", "failed", "expired", "cancelled")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """One line of a batch's output: a request's reply, or why it has none; `is_broken` where it cannot be read."""

    body: str = ""
    status: int = 0
    error: str = ""
    is_broken: bool = False


class BatchTransport:
    """Sends one teacher's requests in batches and waits for them."""

    def __init__(
        self, asker: Asker, run_id: str, every: Sequence[Request], *, poll_seconds: float, max_requests: int
    ) -> None:
        """`every` request that may come: a batch of a run that was killed holds any of them."""
        self._asker, self._run_id = asker, run_id
        self._every = {request.request_hash: request for request in every}
        self._poll_seconds, self._max_requests = poll_seconds, max_requests
        self._table = asker.table
        self.refused: set[str] = set()
        # There was no money for them when they were last to be sent.
        self.capped: set[str] = set()
        # Their answers came, were paid for, and cannot be read.
        self.lost: set[str] = set()
        self.sent = 0

    async def fetch(self, requests: Sequence[Request]) -> None:
        """Have every request answered that is not answered yet, as far as money goes; what failed is sent once more.

        Raises OutsideError when the provider fails a whole batch, and OperatorError when it will not serve us.
        """
        for waiting in batches.waiting(self._asker.record, self._asker.name):
            await self._bring_home(waiting)
        wanted = {request.request_hash: request for request in requests}
        for _ in range(ROUNDS):
            done = self.refused | self.lost
            missing = [each for name, each in wanted.items() if name not in done and self._asker.known(each) is None]
            prepared = [waiting for waiting in map(self._prepare, self._cut(missing)) if waiting is not None]
            if not prepared:
                return
            await asyncio.gather(*(self._bring_home(waiting) for waiting in prepared))

    def _cut(self, requests: Sequence[Request]) -> list[Sequence[Request]]:
        return [requests[start : start + self._max_requests] for start in range(0, len(requests), self._max_requests)]

    def _prepare(self, requests: Sequence[Request]) -> Waiting | None:
        wanted = []
        for request in requests:
            usd, tokens = most_it_costs(self._table, request, share=self._table.batch_price_share)
            wanted.append(Wanted(request.request_hash, request.decision_id, usd, tokens))
        waiting = batches.prepare(self._asker.record, self._run_id, self._asker.name, wanted, self._asker.purse.caps)
        names = {each.request_hash for each in wanted}
        self.capped = (self.capped - names) | (names - (waiting.spending.keys() if waiting else set()))
        return waiting

    async def _bring_home(self, waiting: Waiting) -> None:
        """Send a batch unless it was sent, wait until it has ended, and save what came of it."""
        import openai

        try:
            batch = await self._sent(waiting)
            if batch is None:
                batches.settle(self._asker.record, waiting, (), state=BatchState.FAILED, detail="never sent")
                return
            while batch.status not in _ENDED:
                await asyncio.sleep(self._poll_seconds)
                batch = await self._asker.teacher.client.batches.retrieve(batch.id)
            lines = await self._lines(batch)
        except openai.APIStatusError as error:
            where = f"the batches of the teacher {self._asker.name!r} at {self._table.base_url}"
            if error.status_code in (401, 402, 403, 404) or error.status_code < 400:
                raise OperatorError(
                    f"{where} are refused (HTTP {error.status_code}); mend the key, the account or base_url, or set [teach] "
                    'transport = "chat"; run again: what was sent is found again'
                ) from None
            raise OutsideError(f"{where} fail (HTTP {error.status_code}); run again: what was sent is found again") from None
        except openai.APIConnectionError as error:
            raise OutsideError(
                f"the batches of the teacher {self._asker.name!r} at {self._table.base_url} cannot be reached "
                f"({error.__cause__ or error}); run again: what was sent is found again"
            ) from None
        self._collect(waiting, batch, *lines)

    async def _sent(self, waiting: Waiting) -> "Batch | None":
        """Return the provider's batch: the one that was sent before, or a new one; None when its requests are gone."""
        client = self._asker.teacher.client
        if waiting.provider_batch_id is not None:
            return await client.batches.retrieve(waiting.provider_batch_id)
        if waiting.input_file_id is not None:
            # Killed between sending it and noting its name: the provider knows it by ours.
            async for batch in client.batches.list(limit=100):
                if (batch.metadata or {}).get(_OUR_NAME) == waiting.batch_id:
                    batches.submitted(
                        self._asker.record, waiting.batch_id, input_file_id=batch.input_file_id, provider_batch_id=batch.id
                    )
                    return batch
        requests = [self._every[name] for name in waiting.spending if name in self._every]
        if not requests:
            return None
        text = "".join(_line_of(request) + "\n" for request in requests)
        file = await client.files.create(
            file=(f"{waiting.batch_id}.jsonl", text.encode("utf-8", "replace")), purpose="batch"
        )
        batches.submitted(self._asker.record, waiting.batch_id, input_file_id=file.id, provider_batch_id=None)
        batch = await client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={_OUR_NAME: waiting.batch_id},
        )
        batches.submitted(self._asker.record, waiting.batch_id, input_file_id=file.id, provider_batch_id=batch.id)
        self.sent += len(requests)
        self._asker.calls += len(requests)
        return batch

    async def _lines(self, batch: "Batch") -> tuple[dict[str, Line], int]:
        """Return what came down, by the name of the request, in whichever order it stands, and how many lines have no name."""
        found: dict[str, Line] = {}
        nameless = 0
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                content = await self._asker.teacher.client.files.content(file_id)
                # A text in JSON may hold other line ends than this one.
                for text in content.content.decode("utf-8", "replace").split("\n"):
                    if not text.strip():
                        continue
                    name, line = _read_line(text)
                    self._asker.faults[Fault.INVALID_JSON] += line.is_broken
                    if name:
                        found[name] = line
                    else:
                        nameless += 1
        return found, nameless

    def _collect(self, waiting: Waiting, batch: "Batch", lines: dict[str, Line], nameless: int) -> None:
        """Save the replies and settle the money in one step.

        What has no line was not done, and has cost nothing; but each line without a name is the answer to one of those.
        """
        strange = lines.keys() - waiting.spending.keys()
        self._asker.faults[Fault.OTHER_REQUEST] += len(strange)
        paid = [self._paid(name, lines[name], waiting.decisions[name]) for name in waiting.spending if name in lines]
        without_line = [name for name in waiting.spending if name not in lines]
        undone = len(without_line)
        paid += [Paid(name, None, 0, None) for name in without_line[:nameless]]
        fault = Fault.BATCH_EXPIRED if batch.status == "expired" else Fault.BATCH_FAILED
        self._asker.faults[fault] += undone
        self._asker.faults = +self._asker.faults
        if undone or strange:
            log.warning(
                "%s: the batch %s is %s, with %d of %d requests undone and %d answers for other ones",
                self._asker.name, batch.id, batch.status, undone, len(waiting.spending), len(strange),
            )  # fmt: skip
        state = BatchState.COLLECTED if paid or batch.status == "completed" else BatchState.FAILED
        batches.settle(self._asker.record, waiting, paid, state=state, detail=batch.status)
        for each in paid:
            request = self._every.get(each.request_hash)
            if request is not None and each.reply is not None and each.tokens > most_it_costs(self._table, request)[1]:
                self._asker.check_bill(request, each.reply)

    def _paid(self, name: str, line: Line, decision_id: str) -> Paid:
        if line.is_broken:
            self.lost.add(name)
            return Paid(name, None, 0, None)
        if line.status != 200 or not line.body:
            is_refusal = 400 <= line.status < 500 and line.status != 429
            self._asker.faults[Fault.REFUSED_REQUEST if is_refusal else Fault.SERVER_ERROR] += 1
            if is_refusal:
                self.refused.add(name)
            return Paid(name, 0.0, 0, None)
        stored = TeacherReply(name, decision_id, self._asker.name, line.body, 0, 0, 0.0, 0.0)
        request = self._every.get(name)
        if request is None:
            # A run with other settings asked it: kept as it came, and booked at what was reserved.
            return Paid(name, None, 0, stored)
        share = self._table.batch_price_share
        most_usd, most_tokens = most_it_costs(self._table, request, share=share)
        reply = read_reply(line.body, request)
        if isinstance(reply, Fault):
            self._asker.faults[reply] += 1
            return Paid(name, most_usd, most_tokens, replace(stored, cost_usd=most_usd))
        self._asker.faults.update(Counter(reply.faults))
        stored = priced(stored, reply, self._table, most_usd=most_usd, share=share)
        if reply.usage is None:
            return Paid(name, most_usd, most_tokens, stored)
        usd = cost_usd(self._table, reply.usage, share=share)
        return Paid(name, usd, reply.usage.prompt_tokens + reply.usage.completion_tokens, stored)


def _line_of(request: Request) -> str:
    """Return a request as a line of a batch's file, its body byte for byte as the chat would send it."""
    head = json.dumps({"custom_id": request.request_hash, "method": "POST", "url": "/v1/chat/completions"})
    return f'{head[:-1]}, "body": {request.body}}}'


def _read_line(text: str) -> tuple[str, Line]:
    """Return whose a line is (empty where it does not say) and what stands in it."""
    try:
        found: Json = json.loads(text)
    except (ValueError, RecursionError):
        named = _NAMED.search(text)
        return named[1] if named else "", Line(is_broken=True)
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        return "", Line(is_broken=True)
    name, response, error = str(found["custom_id"]), found.get("response"), found.get("error")
    if isinstance(response, dict):
        status, body = response.get("status_code"), response.get("body")
        return name, Line(
            body=storable_text(json.dumps(body, ensure_ascii=False)) if body is not None else "",
            status=status if isinstance(status, int) else 0,
        )
    return name, Line(error=json.dumps(error))
