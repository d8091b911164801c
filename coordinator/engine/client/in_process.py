"""The engine in this process, on a thread of its own: nothing is encoded, and outputs come by call."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import TypeVar, cast

from coordinator.engine.client.base import NO_LIMIT, PART
from coordinator.engine.client.handlers import Handlers, engine_handlers
from coordinator.engine.client.output_stream import OutputStream
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.errors import (
    DuplicateRequestError,
    EngineClosedError,
    EngineError,
    NoCommandError,
    RequestExpiredError,
    SlowConsumerError,
)
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus
from moe_model.errors import ExpertMeshError

R = TypeVar("R")


class InProcessEngine:
    """An EngineClient. Owns the engine's thread; made, used and closed on one event loop."""

    def __init__(
        self,
        thread: EngineThread,
        handlers: Handlers | None = None,
        model: Callable[[], ModelStatus] = lambda: ModelStatus(()),
    ) -> None:
        """`handlers` are of the commands that not every engine has; `model` says what it consists of."""
        self._loop = asyncio.get_running_loop()
        self._serial = itertools.count()
        self._keys: dict[str, str] = {}
        self._streams: dict[str, OutputStream] = {}
        # Requests that ended while their constraints were built.
        self._aborted: set[str] = set()
        self._handlers = {**engine_handlers(thread), **(handlers or {})}
        self._model = model
        self._closed = False
        self._thread = thread
        thread.start(self._publish, self._stopped)

    async def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]:
        """As EngineClient says."""
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if request.request_id in self._keys:
            raise DuplicateRequestError(f"request_id: {request.request_id} is already running")
        # The engine knows a request by a key of its own: an output of an ended request that is still on
        # its way can then never reach a new request with the same id.
        key = self._keys[request.request_id] = f"{request.request_id}/{next(self._serial)}"
        stream = self._streams[key] = OutputStream()
        num_open = request.num_sequences
        expired = _failed(key, RequestExpiredError(f"more than {max_seconds:g} s old"))
        timer = self._loop.call_later(max_seconds, stream.put, expired)
        try:
            await self._submit(replace(request, request_id=key))
            while num_open:
                for output in await stream.get():
                    if output.failure is not None and not num_open:
                        # All was said before it went wrong.
                        return
                    if output.failure is not None:
                        num_open = num_open if output is expired else 0
                        raise output.failure.error()
                    num_open -= output.is_last
                    yield replace(output, request_id=request.request_id)
        finally:
            timer.cancel()
            self._aborted.discard(key)
            del self._streams[key], self._keys[request.request_id]
            if num_open:
                self._thread.abort(key)

    async def _submit(self, request: Request) -> None:
        """A request whose constraint has to be built waits outside the engine. Raises ConstraintError."""
        preparer = self._thread.preparer
        prepared = preparer.at_once(request)
        if prepared is None:
            prepared = await asyncio.to_thread(preparer.prepare, request)
        self._thread.submit(request, prepared)
        if request.request_id in self._aborted:
            self._thread.abort(request.request_id)

    def abort(self, request_id: str) -> bool:
        keys = [key for name, key in self._keys.items() if name.partition(PART)[0] == request_id]
        for key in keys:
            self._aborted.add(key)
            self._thread.abort(key)
        return bool(keys)

    @property
    def request_ids(self) -> list[str]:
        return list(dict.fromkeys(name.partition(PART)[0] for name in self._keys))

    def stats(self) -> EngineStats:
        return self._thread.stats()

    def model(self) -> ModelStatus:
        return self._model()

    def call(self, command: Command[R]) -> R:
        handler = self._handlers.get(type(command))
        if handler is None:
            raise NoCommandError(f"this engine has no command {type(command).__name__}")
        return cast(R, handler(command))

    async def close(self, timeout: float = 10.0) -> bool:
        self._closed = True
        for key, stream in self._streams.items():
            self._thread.abort(key)
            stream.put(_failed(key, EngineClosedError("the engine was closed")))
        return await asyncio.to_thread(self._thread.close, timeout)

    def _publish(self, outputs: Sequence[Output]) -> None:
        """Runs on the engine's thread: one wake-up of the loop per step, whatever the batch."""
        # A loop that was closed without closing us first has no reader left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _stopped(self, error: EngineError) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end_all, error)

    def _end_all(self, error: EngineError) -> None:
        for key, stream in self._streams.items():
            stream.put(_failed(key, error))

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None and not stream.put(output):
                error = SlowConsumerError("more output waits to be read than one request may hold")
                stream.put(_failed(output.request_id, error))
                self._thread.abort(output.request_id)


def _failed(key: str, error: ExpertMeshError) -> Output:
    return Output(key, failure=Failure.of(error))
