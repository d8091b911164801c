"""The engine as asyncio sees it: one stream of outputs per request, bounded by merging."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from coordinator.engine.core.engine import Engine, EngineError, EngineStats
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.output_stream import OutputStream
from coordinator.engine.core.request import Output, Request
from moe_model.errors import UserError, WorldError

T = TypeVar("T")

# Stands between a request's id and the number of one of its prompts; no caller's id has one.
PART = "/"


class DuplicateRequestError(UserError):
    """A request with this id is running."""


class EngineClosedError(WorldError):
    """The engine has been closed."""


class RequestExpiredError(UserError):
    """A request has taken longer than any may."""


class SlowConsumerError(UserError):
    """More output waits to be read than one request may hold."""


class AsyncEngine:
    """Owns the engine's thread. Made, used and closed on one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._loop = asyncio.get_running_loop()
        self._serial = itertools.count()
        self._keys: dict[str, str] = {}
        self._streams: dict[str, OutputStream] = {}
        self._thread = EngineThread(engine, self._publish, self._stopped)
        self._closed = False
        self._thread.start()

    async def stream(self, request: Request, max_seconds: float = 1e9) -> AsyncGenerator[Output, None]:
        """Yields the request's outputs; the last has a finish reason. Raises the request's error.

        A reader that lags gets several steps merged into one output. Leaving early ends the request.
        Raises DuplicateRequestError, EngineClosedError; RequestExpiredError `max_seconds` from now, after
        what was there by then.
        """
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if request.request_id in self._keys:
            raise DuplicateRequestError(f"request_id: {request.request_id} is already running")
        # The engine knows a request by a key of its own: an output of an ended request that is still on
        # its way can then never reach a new request with the same id.
        key = self._keys[request.request_id] = f"{request.request_id}/{next(self._serial)}"
        stream = self._streams[key] = OutputStream()
        num_open = request.num_sequences
        expired = Output(key, error=RequestExpiredError(f"more than {max_seconds:g} s old"))
        timer = self._loop.call_later(max_seconds, stream.put, expired)
        try:
            self._thread.submit(replace(request, request_id=key))
            while num_open:
                for output in await stream.get():
                    if output.error is not None and not num_open:
                        # All was said before it went wrong.
                        return
                    if output.error is not None:
                        num_open = num_open if output is expired else 0
                        # One error may end many requests: each raises it with a trace of its own.
                        raise output.error.with_traceback(None)
                    num_open -= output.is_last
                    yield replace(output, request_id=request.request_id)
        finally:
            timer.cancel()
            del self._streams[key], self._keys[request.request_id]
            if num_open:
                self._thread.abort(key)

    def abort(self, request_id: str) -> bool:
        """Ends a request, with all its prompts, with FinishReason.ABORT; False when it is not running."""
        keys = [key for name, key in self._keys.items() if name.partition(PART)[0] == request_id]
        for key in keys:
            self._thread.abort(key)
        return bool(keys)

    @property
    def request_ids(self) -> list[str]:
        """The requests whose streams are open."""
        return list(dict.fromkeys(name.partition(PART)[0] for name in self._keys))

    @property
    def num_requests(self) -> int:
        """Requests whose streams are open."""
        return len(self._streams)

    def stats(self) -> EngineStats:
        return self._thread.stats()

    async def check_integrity(self) -> None:
        """Raises AssertionError when the engine has lost a block or a sequence."""
        await asyncio.wrap_future(self._thread.call(Engine.check_integrity))

    def call(self, function: Callable[[Engine], T]) -> Future[T]:
        """As EngineThread.call: between two steps. From any thread."""
        return self._thread.call(function)

    async def close(self, timeout: float = 10.0) -> bool:
        """Ends every stream with EngineClosedError and the thread; False when a step outlasts `timeout`."""
        self._closed = True
        for key, stream in self._streams.items():
            self._thread.abort(key)
            stream.put(Output(key, error=EngineClosedError("the engine was closed")))
        return await asyncio.to_thread(self._thread.close, timeout)

    def _publish(self, outputs: Sequence[Output]) -> None:
        """Runs on the engine's thread: one wake-up of the loop per step, whatever the batch."""
        # A loop that was closed without closing us first has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _stopped(self, error: EngineError) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end_all, error)

    def _end_all(self, error: EngineError) -> None:
        for key, stream in self._streams.items():
            stream.put(Output(key, error=error))

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None and not stream.put(output):
                error = SlowConsumerError("more output waits to be read than one request may hold")
                stream.put(Output(output.request_id, error=error))
                self._thread.abort(output.request_id)
