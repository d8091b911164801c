"""The answer to a completion or chat request, whole or as server-sent events. Leaving ends it."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.api.http.answer import Asked, Envelope, Shape, warned
from coordinator.api.http.errors import error_body, error_response
from coordinator.api.http.generations import PromptEvent, generations
from coordinator.api.http.shapes import usage
from coordinator.api.requests.event_join import join
from coordinator.api.requests.responses import Caller, Front
from coordinator.api.shared.errors import ApiError, Reason
from expertmesh.v1 import generation_pb2 as pb

logger = logging.getLogger(__name__)

# nginx's word for a client that has closed its connection; only the log shows it.
CLIENT_CLOSED = 499
EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True, slots=True)
class Job:
    """A parsed request with everything that answering it takes."""

    asked: Asked
    shape: Shape
    caller: Caller
    front: Front
    model: str
    write_stall_timeout: float
    warnings: Sequence[str] = ()


async def respond(job: Job, request: Request) -> Response:
    """Raises nothing: what goes wrong before the first byte is an error response."""
    if job.asked.streaming.stream:
        return EventStream(job)
    work = asyncio.ensure_future(_whole(job))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=CLIENT_CLOSED)
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _whole(job: Job) -> Response:
    collected: list[list[pb.GenerateStreamResponse]] = [[] for _ in job.asked.messages]
    try:
        async with generations(job.asked.messages, job.caller, job.front) as events:
            async for item in events:
                collected[item.prompt].append(item.event)
    except ApiError as error:
        return error_response(error, job.asked.names)
    answers = [join(events_of_prompt) for events_of_prompt in collected]
    choices = [
        job.shape.choice(prompt * job.asked.num_sequences + output.index, prompt, output, answer.prompt)
        for prompt, answer in enumerate(answers)
        for output in answer.outputs
    ]
    envelope = Envelope(f"{job.shape.id_prefix}{job.caller.request_id}", job.shape.kind, job.model)
    body = envelope.around(choices, usage=usage(answer.usage for answer in answers), **warned(job.warnings))
    return Response(json.dumps(body), media_type="application/json")


class EventStream(Response):
    """Server-sent events. The status is sent with the first event, so that a refusal still has its own.

    `on_end` is told the status once everything is over.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(headers=EVENT_HEADERS, media_type="text/event-stream")
        self.on_end: Callable[[int], None] | None = None
        self._job = job
        self._began = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        work = asyncio.ensure_future(self._send_all(scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            if self.on_end is not None:
                self.on_end(self.status_code if work.done() and not work.cancelled() else CLIENT_CLOSED)

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = self._job
        chunks = _Chunks(job)
        try:
            async with generations(job.asked.messages, job.caller, job.front) as events:
                async for item in events:
                    for chunk in chunks.of(item):
                        await self._event(send, chunk)
            for chunk in chunks.last():
                await self._event(send, chunk)
        except ApiError as error:
            if not self._began:
                response = error_response(error, job.asked.names)
                response.headers.update(job.caller.id_headers)
                self.status_code = response.status_code
                await response(scope, receive, send)
                return
            if error.reason is Reason.SLOW_CONSUMER:
                # The client does not read; the connection ends in the middle of the answer.
                return
            await self._event(send, error_body(error, job.asked.names))
        await self._data(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, send: Send, value: Mapping[str, Any]) -> None:
        await self._data(send, f"data: {json.dumps(value)}\n\n".encode())

    async def _data(self, send: Send, data: bytes) -> None:
        if not self._began:
            self._began = True
            raw = [(key, value) for key, value in self.raw_headers if key != b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
        try:
            async with asyncio.timeout(self._job.write_stall_timeout):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            raise ApiError.of(Reason.SLOW_CONSUMER, "the client reads nothing") from None


@dataclass(slots=True)
class _Chunks:
    """From events to chunks of one stream."""

    job: Job
    envelope: Envelope = field(init=False)
    infos: dict[int, pb.PromptInfo] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    usages: dict[int, pb.Usage] = field(default_factory=dict)
    # Told with the first chunk.
    warnings: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.warnings = warned(self.job.warnings)
        shape, caller = self.job.shape, self.job.caller
        self.envelope = Envelope(f"{shape.id_prefix}{caller.request_id}", shape.chunk_kind, self.job.model)

    def of(self, item: PromptEvent) -> Iterator[dict[str, Any]]:
        event, shape = item.event, self.job.shape
        match event.WhichOneof("event"):
            case "prompt":
                self.infos.setdefault(item.prompt, pb.PromptInfo()).MergeFrom(event.prompt)
                self.usages.setdefault(item.prompt, pb.Usage()).prompt_tokens += event.prompt.prompt_tokens
                if not self._waits_for_details():
                    yield from self._begin(item.prompt)
            case "delta":
                yield from self._begin(item.prompt)
                self.usages[item.prompt].completion_tokens += event.delta.num_tokens
                yield self._chunk(shape.delta(self._index(item, event.delta.index), event.delta))
            case "finished":
                yield from self._begin(item.prompt)
                yield self._chunk(shape.finished(self._index(item, event.finished.index), event.finished))
            case "summary":
                self.usages[item.prompt].CopyFrom(event.summary.usage)

    def last(self) -> Iterator[dict[str, Any]]:
        """OpenAI's chunk without choices, for a client that asked for usage."""
        if self.job.asked.streaming.include_usage:
            yield self.envelope.around([], usage=usage(self.usages.values()))

    def _begin(self, prompt: int) -> Iterator[dict[str, Any]]:
        """The first chunk of every choice of a prompt."""
        if prompt in self.begun:
            return
        self.begun.add(prompt)
        count = self.job.asked.num_sequences
        for index in range(prompt * count, (prompt + 1) * count):
            choice = self.job.shape.first(index, prompt, self.infos[prompt])
            if choice is not None:
                yield self._chunk(choice)

    def _waits_for_details(self) -> bool:
        """Logprobs and routing of the prompt are known when it has been computed."""
        responses = [message.response for message in self.job.asked.messages]
        return any(each.HasField("prompt_logprobs") or each.return_routed_experts for each in responses)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        streaming = self.job.asked.streaming
        more, self.warnings = self.warnings, {}
        if streaming.continuous_usage:
            return self.envelope.around([choice], usage=usage(self.usages.values()), **more)
        return self.envelope.around([choice], **({"usage": None} if streaming.include_usage else {}), **more)

    def _index(self, item: PromptEvent, sequence: int) -> int:
        return item.prompt * self.job.asked.num_sequences + sequence


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
