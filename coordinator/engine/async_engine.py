"""The engine as asyncio sees it: one stream of outputs per request, bounded by merging."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from coordinator.engine.engine import Engine, EngineStats
from coordinator.engine.engine_thread import EngineThread
from coordinator.engine.request import Output, Request
from moe_model.errors import UserError, WorldError


class DuplicateRequestError(UserError):
    """A request with this id is running."""


class EngineClosedError(WorldError):
    """The engine has been closed."""


class AsyncEngine:
    """Owns the engine's thread. Made, used and closed on one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._loop = asyncio.get_running_loop()
        self._serial = itertools.count()
        self._keys: dict[str, str] = {}
        self._streams: dict[str, _OutputStream] = {}
        self._thread = EngineThread(engine, self._publish)
        self._closed = False
        self._thread.start()

    async def stream(self, request: Request) -> AsyncGenerator[Output, None]:
        """Yields the request's outputs; the last has a finish reason. Raises the request's error.

        A reader that lags gets several steps merged into one output. Leaving early ends the request.
        Raises DuplicateRequestError, EngineClosedError.
        """
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if request.request_id in self._keys:
            raise DuplicateRequestError(f"request_id: {request.request_id} is already running")
        # The engine knows a request by a key of its own: an output of an ended request that is still on
        # its way can then never reach a new request with the same id.
        key = self._keys[request.request_id] = f"{request.request_id}/{next(self._serial)}"
        stream = self._streams[key] = _OutputStream()
        done = False
        try:
            self._thread.submit(replace(request, request_id=key))
            while not done:
                output = await stream.get()
                done = output.is_last
                if output.error is None:
                    yield replace(output, request_id=request.request_id)
                    continue
                if output.token_ids:
                    # They were drawn before the error and came merged with it.
                    yield Output(request.request_id, output.token_ids)
                # One error may end many requests: each raises it with a trace of its own.
                raise output.error.with_traceback(None)
        finally:
            del self._streams[key], self._keys[request.request_id]
            if not done:
                self._thread.abort(key)

    def abort(self, request_id: str) -> None:
        """Ends a request with FinishReason.ABORT; nothing happens when it is not running."""
        key = self._keys.get(request_id)
        if key is not None:
            self._thread.abort(key)

    @property
    def num_requests(self) -> int:
        """Requests whose streams are open."""
        return len(self._streams)

    def stats(self) -> EngineStats:
        return self._thread.stats()

    async def check_integrity(self) -> None:
        """Raises AssertionError when the engine has lost a block or a sequence."""
        await asyncio.wrap_future(self._thread.check_integrity())

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

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put(output)


class _OutputStream:
    """Holds at most one output: what has not been read is merged with what comes."""

    def __init__(self) -> None:
        self._pending: Output | None = None
        self._ready = asyncio.Event()

    def put(self, output: Output) -> None:
        if self._pending is None:
            self._pending = output
        elif not self._pending.is_last:
            self._pending = replace(output, token_ids=[*self._pending.token_ids, *output.token_ids])
        self._ready.set()

    async def get(self) -> Output:
        await self._ready.wait()
        self._ready.clear()
        assert self._pending is not None
        output, self._pending = self._pending, None
        return output
