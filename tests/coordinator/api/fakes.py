"""A scripted engine, a small served model, and a real server around them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from msgspec import structs

from coordinator.api.grpc.server import GrpcServer
from coordinator.api.requests.gate import Gate
from coordinator.api.requests.responses import Front
from coordinator.api.shared.request_log import RequestLog
from coordinator.api.shared.served_model import ServedModel
from coordinator.engine.messages.errors import RequestExpiredError
from coordinator.engine.messages.output import FinishReason, Output, RequestTimings, Stop
from coordinator.engine.messages.request import Request
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from moe_model.checkpoint.reader import GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.text.tokenizer import Tokenizer
from tests.coordinator.api import engine_kinds

TOKENIZER_FILE = Path(__file__).parents[2] / "data" / "modularforge-tiny" / "tokenizer.json"
TIMINGS = RequestTimings(queue_time=0.25, time_to_first_token=0.5, total_time=1.5)
BOS, EOS = 2, 3
# Long enough for a busy machine; a test that waits so long has failed.
PATIENCE = 60.0

Step = Output | BaseException | asyncio.Event
Script = Callable[[Request], Iterable[Step]]


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(TOKENIZER_FILE.read_bytes())


def served_model(**changes: Any) -> ServedModel:
    model = ServedModel(
        name="tiny",
        config=ModelConfig(
            d_model=64, n_heads=4, n_layers=3, d_ff=96, n_experts=5, top_k=2, vocab_size=320, max_seq_len=32
        ),
        generation_defaults=GenerationDefaults(
            temperature=0.8, top_k=50, top_p=0.9, bos_token_id=BOS, eos_token_ids=(EOS,), pad_token_id=0
        ),
        tokenizer=tiny_tokenizer(),
        architecture="AssembledMoEModel",
        max_output_tokens=40,
        kv_capacity_tokens=1024,
        aliases=("default",),
    )
    return replace(model, **changes)


def tokens(*token_ids: int) -> Output:
    return Output("", token_ids)


def last(*token_ids: int, reason: FinishReason = FinishReason.LENGTH, stop: int | None = None) -> Output:
    return Output("", token_ids, reason, None if stop is None else Stop(stop), timings=TIMINGS)


class FakeEngine:
    """Plays a script for each request. An Event in the script holds it up; an exception is raised."""

    def __init__(self, *script: Step, play: Script | None = None) -> None:
        steps = script or (tokens(40), tokens(41), last(42))
        self._play = play or (lambda request: steps)
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self.num_running = 0
        self.started = asyncio.Event()
        self.abort_seen = asyncio.Event()
        # Kept, so that only whoever closes a stream ends it, and never the garbage collector.
        self._streams: list[AsyncGenerator[Output, None]] = []
        self._far = engine_kinds.SIDES.of(self)

    def stream(self, request: Request, max_seconds: float) -> AsyncGenerator[Output, None]:
        source = self.play if self._far is None else self._far.stream
        self._streams.append(source(request, max_seconds))
        return self._streams[-1]

    async def close(self) -> None:
        """Ends what is between it and its callers, if anything."""
        if self._far is not None:
            await self._far.close()

    async def play(self, request: Request, max_seconds: float) -> AsyncGenerator[Output, None]:
        self.requests.append(request)
        self.num_running += 1
        self.started.set()
        done = False
        try:
            for step in self._play(request):
                if isinstance(step, asyncio.Event):
                    await _wait(step, max_seconds)
                elif isinstance(step, BaseException):
                    done = True
                    raise step
                else:
                    done = step.is_last
                    yield structs.replace(step, request_id=request.request_id)
        finally:
            self.num_running -= 1
            if not done:
                self.aborted.append(request.request_id)
                self.abort_seen.set()


async def _wait(step: asyncio.Event, max_seconds: float) -> None:
    try:
        async with asyncio.timeout(max_seconds):
            await step.wait()
    except TimeoutError:
        raise RequestExpiredError("over") from None


def ends_at_once() -> FakeEngine:
    """Answers any request with one token for each of its sequences."""

    def play(request: Request) -> list[Output]:
        return [structs.replace(last(42), index=i) for i in range(request.num_sequences)]

    return FakeEngine(play=play)


@dataclass
class Running:
    """A server on a port of its own, and a stub and channel to it."""

    server: GrpcServer
    engine: FakeEngine
    channel: grpc.aio.Channel
    stub: Any


@asynccontextmanager
async def running(
    engine: FakeEngine | None = None, model: ServedModel | None = None, *, ready: bool = True
) -> AsyncIterator[Running]:
    engine = engine or FakeEngine()
    server = GrpcServer("127.0.0.1:0", Front(Gate(), observer=RequestLog()))
    server.bind()
    await server.start()
    try:
        if ready:
            await server.set_ready(model or served_model(), engine)
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            yield Running(server, engine, channel, stub)
    finally:
        await server.close()
        await engine.close()


@dataclass
class Failure:
    """A failed call, with its google.rpc details by type."""

    code: str
    message: str
    details: dict[str, Any]
    initial_metadata: dict[str, Any]
    trailing_metadata: dict[str, Any]
    details_size: int

    @property
    def reason(self) -> str:
        return str(self.details["ErrorInfo"].reason)

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.details["ErrorInfo"].metadata)

    @property
    def fields(self) -> list[str]:
        bad_request = self.details.get("BadRequest")
        return [violation.field for violation in bad_request.field_violations] if bad_request else []


def failure(error: grpc.aio.AioRpcError) -> Failure:
    trailing = dict(error.trailing_metadata() or ())
    data: Any = trailing.get("grpc-status-details-bin", b"")
    return Failure(
        error.code().name,
        error.details() or "",
        unpack(data),
        dict(error.initial_metadata() or ()),
        trailing,
        len(data),
    )


def unpack(data: bytes) -> dict[str, Any]:
    status = status_pb2.Status.FromString(data)
    details: dict[str, Any] = {}
    for packed in status.details:
        kind = packed.type_url.rsplit(".", 1)[1]
        detail: Message = getattr(error_details_pb2, kind)()
        assert packed.Unpack(detail)
        details[kind] = detail
    return details


async def failure_of(call: Any) -> Failure:
    """Awaits a unary call, or reads a stream, that must fail."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        # A stream's error may come before what began the call is known to have come.
        return replace(failure(error), initial_metadata=dict(await call.initial_metadata()))
    raise AssertionError("the call did not fail")


@contextmanager
def logged(text: str) -> Iterator[asyncio.Event]:
    """An event that is set when a call's log line holds the text."""
    event = asyncio.Event()
    logger = logging.getLogger("coordinator.api")
    handler = _Watcher(text, event)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield event
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Watcher(logging.Handler):
    def __init__(self, text: str, event: asyncio.Event) -> None:
        super().__init__()
        self._text, self._event = text, event

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._event.set()


def generate_request(text: str = "", prompt: str = "hello") -> pb.GenerateRequest:
    """A request from text format."""
    return text_format.Parse(text, pb.GenerateRequest(text=prompt))
