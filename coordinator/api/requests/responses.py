"""From messages to events, for every front: admission, validation, engine, facts."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from coordinator.api.requests.admission import Ticket
from coordinator.api.requests.events import E, Event, EventWriter
from coordinator.api.requests.gate import Backend, Gate
from coordinator.api.requests.lanes import is_quick, lane_of
from coordinator.api.requests.plain_delta import plain_bytes, plain_event
from coordinator.api.security.quotas import NoQuotas, Quotas
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.request_ids import id_headers
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.request import ValidRequest, resolve
from coordinator.engine.client.base import PART
from coordinator.engine.messages.errors import RequestExpiredError
from coordinator.engine.messages.output import Output
from expertmesh.v1 import generation_pb2 as pb

# Larger messages, and those whose checks take long whatever their size, are checked off the event loop.
MAX_INLINE_BYTES = 16 << 10

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request. `key_id` is the name of an API key; it also keeps cached prompts apart.

    `given_ids` are the headers with ids that came along, fit to be shown; `deadline` is by
    `time.monotonic()`.
    """

    request_id: str
    peer: str = ""
    key_id: str = ""
    transport: str = "grpc"
    streams: bool = False
    trace_parent: Mapping[str, str] = field(default_factory=dict)
    given_ids: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None

    @property
    def id_headers(self) -> dict[str, str]:
        """What every answer to it is marked with."""
        return id_headers(self.request_id, self.given_ids)


@dataclass(slots=True)
class Facts:
    """What becomes known of one request, for the log, the metrics and the trace. Times are in seconds.

    `gaps` are (seconds per token, tokens) between outputs of one sequence.
    """

    valid: ValidRequest | None = None
    model: str = ""
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: dict[int, str] = field(default_factory=dict)
    queue_time: float | None = None
    time_to_first_token: float | None = None
    total_time: float = 0.0
    gaps: list[tuple[float, int]] = field(default_factory=list)
    # Its last event has been read.
    is_complete: bool = False

    @property
    def prompt_tokens(self) -> int:
        return 0 if self.valid is None else len(self.valid.request.prompt_ids)


class RequestObserver(Protocol):
    """Told of every request that is looked at. Lives on the event loop; must be quick and must not raise."""

    def started(self, caller: Caller, facts: Facts) -> int | None:
        """A valid request goes to the engine; what this returns becomes its `Request.trace`."""

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None: ...


class NullObserver:
    """Does nothing."""

    def started(self, caller: Caller, facts: Facts) -> int | None:
        return None

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Front:
    """What all fronts share. `max_seconds` ends a request that nothing else ends."""

    gate: Gate
    observer: RequestObserver = field(default_factory=NullObserver)
    quotas: Quotas = field(default_factory=NoQuotas)
    max_seconds: float = 3600.0


@asynccontextmanager
async def admitted(
    messages: Sequence[pb.GenerateRequest], caller: Caller, front: Front, facts: Sequence[Facts]
) -> AsyncIterator[list["Work"]]:
    """Holds the place of one request, which may have several prompts: its id, its key's quota, and room for
    all of its sequences. Every prompt is valid before any begins. Raises ApiError.

    `facts` has one entry per message, filled as the request goes on.
    """
    arrival_time = time.monotonic()
    with ExitStack() as held:
        backend = held.enter_context(front.gate.call())
        held.enter_context(front.gate.claim(caller.request_id))
        held.enter_context(front.quotas.enter(caller.key_id))
        ticket = held.enter_context(front.gate.admission.ticket())
        most = backend.model.max_num_sequences
        ticket.take_sequences(sum(min(max(1, m.sampling.num_sequences), most) for m in messages))
        works = []
        num_bytes = sum(each.ByteSize() for each in messages)
        for number, (message, known) in enumerate(zip(messages, facts, strict=True)):
            own = caller if len(messages) == 1 else replace(caller, request_id=part(caller, number))
            arguments = (message, backend.model, own.request_id, arrival_time, caller.key_id.encode())
            known.valid = await off_loop(resolve, *arguments, num_bytes=num_bytes)
            known.model = known.valid.model
            works.append(Work(own, front, backend, ticket, known.valid, known))
        ticket.wait_with(sum(known.prompt_tokens for known in facts))
        check_deadline(caller)
        yield works


def part(caller: Caller, number: int) -> str:
    """The id of one prompt of several. No caller can choose one like it: a slash is not for them."""
    return f"{caller.request_id}{PART}{number}"


@dataclass(frozen=True, slots=True)
class Work:
    """One prompt of an admitted request."""

    caller: Caller
    front: Front
    backend: Backend
    ticket: Ticket
    valid: ValidRequest
    facts: Facts

    def events(self) -> AsyncGenerator[Event, None]:
        """The events of its response; closing it aborts what still runs. Raises what the engine raises.

        The first event comes at once, before any work is done.
        """
        return self._told(EventWriter(self.valid, self.backend.model.tokenizer, plain_event))

    def encoded(self) -> AsyncGenerator[Event | bytes, None]:
        """The same, where most are bytes already."""
        return self._told(EventWriter(self.valid, self.backend.model.tokenizer, plain_bytes))

    async def _told(self, writer: EventWriter[E]) -> AsyncGenerator[Event | E, None]:
        front, facts, waiting = self.front, self.facts, self.facts.prompt_tokens
        request = replace(self.valid.request, trace=front.observer.started(self.caller, facts))
        for first in writer.prompt():
            yield first
        clock = _Clock(facts, request.arrival_time)
        try:
            async with aclosing(self.backend.engine.stream(request, front.max_seconds)) as outputs:
                async for output in outputs:
                    if waiting:
                        self.ticket.started(waiting)
                        waiting = 0
                    clock.saw(output)
                    for event in writer.events(output):
                        yield event
        except RequestExpiredError:
            raise _too_old(front.max_seconds) from None
        finally:
            facts.cached_tokens = writer.num_cached
            front.quotas.spent(self.caller.key_id, facts.prompt_tokens + facts.completion_tokens)
        assert writer.done, "the engine's stream ended without a last output"


async def off_loop(
    function: Callable[..., R],
    message: Message,
    served: ServedModel,
    *arguments: object,
    num_bytes: int | None = None,
) -> R:
    """Calls a function that takes as long as the message is large; in a thread where that is long, or where
    it may have to wait for another process.

    `num_bytes` is the size of all messages that are dealt with in a row, where there are several.
    """
    size = message.ByteSize() if num_bytes is None else num_bytes
    if size <= MAX_INLINE_BYTES and is_quick(message) and not served.tokenizer_waits:
        return function(message, served, *arguments)
    return await served.lanes.run(lane_of(message), function, message, served, *arguments)


def check_deadline(caller: Caller) -> None:
    if caller.deadline is not None and time.monotonic() >= caller.deadline:
        raise ApiError.of(Reason.DEADLINE_EXCEEDED, "the deadline passed before the request could begin")


def _too_old(seconds: float) -> ApiError:
    return ApiError.of(Reason.DEADLINE_EXCEEDED, f"a request may take {seconds:.0f} s on this server")


class _Clock:
    """Writes times and counts into the facts, output by output."""

    def __init__(self, facts: Facts, arrival_time: float) -> None:
        self._facts = facts
        self._arrival_time = arrival_time
        self._last: dict[int, float] = {}

    def saw(self, output: Output) -> None:
        facts, now, count = self._facts, time.monotonic(), len(output.token_ids)
        if count:
            facts.completion_tokens += count
            if facts.time_to_first_token is None:
                facts.time_to_first_token = now - self._arrival_time
            before = self._last.get(output.index)
            if before is not None:
                facts.gaps.append(((now - before) / count, count))
            self._last[output.index] = now
        if output.finish_reason is not None:
            facts.finish_reasons[output.index] = output.finish_reason.value
        if output.timings is not None:
            queue_time = output.timings.queue_time
            facts.queue_time = queue_time if facts.queue_time is None else min(facts.queue_time, queue_time)
