"""An EngineClient whose every message crosses as bytes, in both directions: what an engine in a process of
its own does, without the process."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar, cast

from coordinator.engine.client.base import NO_LIMIT, EngineClient
from coordinator.engine.client.handlers import Operated, carry_out, engine_handlers
from coordinator.engine.client.in_process import InProcessEngine
from coordinator.engine.client.receiver import Receiver
from coordinator.engine.client.request_streams import RequestStreams
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import Abort, Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from moe_model.errors import ExpertMeshError
from moe_model.versions.expert_versions import ExpertModule

R = TypeVar("R")

# Makes a client of an engine that is not started yet.
MakeClient = Callable[..., EngineClient]


class FarSide:
    """Where the engine is. Hears and says nothing but bytes."""

    def __init__(self, thread: EngineThread, operated: Operated, say: Callable[[bytes], None]) -> None:
        self._thread = thread
        self._operated = operated
        self._handlers = {**engine_handlers(thread), **operated.handlers}
        self._say = say
        self._receiver = Receiver(thread, self._publish)
        thread.start(self._publish, self._stopped)

    def hear(self, data: bytes) -> None:
        message = decode(data)
        assert isinstance(message, Request | Abort)
        self._receiver.receive(message)

    def answer(self, data: bytes) -> bytes:
        command = decode(data)
        assert isinstance(command, Command)
        try:
            return encode(carry_out(self._handlers, command))
        except ExpertMeshError as error:
            return encode(Failure.of(error))

    def stats(self) -> bytes:
        return encode(self._thread.stats())

    def model(self) -> bytes:
        return encode(self._operated.model())

    def workers(self) -> bytes:
        return encode(self._operated.workers())

    def close(self, timeout: float) -> bool:
        self._receiver.close()
        return self._thread.close(timeout)

    def _publish(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self._say(encode(output))

    def _stopped(self, error: ExpertMeshError) -> None:
        self._say(encode(Failure.of(error)))


class BytesEngine:
    """Where the callers are. Knows no engine, only bytes that come and go."""

    def __init__(self, thread: EngineThread, operated: Operated | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams = RequestStreams(self._send)
        self._far = FarSide(thread, operated or Operated(), self._hear)

    def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]:
        return self._streams.stream(request, max_seconds)

    def abort(self, request_id: str) -> bool:
        return self._streams.abort(request_id)

    @property
    def request_ids(self) -> list[str]:
        return self._streams.request_ids

    def stats(self) -> EngineStats:
        return cast(EngineStats, decode(self._far.stats()))

    def model(self) -> ModelStatus:
        return cast(ModelStatus, decode(self._far.model()))

    def workers(self) -> WorkersStatus:
        return cast(WorkersStatus, decode(self._far.workers()))

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        return self.workers().missing

    def call(self, command: Command[R]) -> R:
        result = decode(self._far.answer(encode(command)))
        if isinstance(result, Failure):
            raise result.error()
        return cast(R, result)

    async def close(self, timeout: float = 10.0) -> bool:
        self._streams.close()
        return await asyncio.to_thread(self._far.close, timeout)

    def _send(self, message: Request | Abort) -> None:
        self._far.hear(encode(message))

    def _hear(self, data: bytes) -> None:
        """On any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._receive, decode(data))

    def _receive(self, message: object) -> None:
        match message:
            case Output():
                self._streams.deliver([message])
            case Failure():
                self._streams.end_all(message.error())
            case _:
                raise AssertionError(f"{message} is no news of an engine")


CLIENTS: dict[str, MakeClient] = {"in process": InProcessEngine, "over bytes": BytesEngine}
