"""The streams of requests on one event loop, for any engine behind them: merged, bounded, ended in time."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace

import msgspec

from coordinator.engine.client.base import NO_LIMIT, PART
from coordinator.engine.client.output_stream import OutputStream
from coordinator.engine.messages.errors import (
    DuplicateRequestError,
    EngineClosedError,
    RequestExpiredError,
    SlowConsumerError,
)
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import Abort, Request
from moe_model.errors import ExpertMeshError


class RequestStreams:
    """Made and used on one event loop. An engine knows a request by a key of its own: an output of an ended
    request that is still on its way can then never reach a new request with the same id."""

    def __init__(self, send: Callable[[Request | Abort], None]) -> None:
        """`send` tells the engine, and never waits; the engine's answers go to `deliver`."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._serial = itertools.count()
        self._keys: dict[str, str] = {}
        self._streams: dict[str, OutputStream] = {}
        self._closed = False

    async def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]:
        """As RequestEngine says."""
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if request.request_id in self._keys:
            raise DuplicateRequestError(f"request_id: {request.request_id} is already running")
        key = self._keys[request.request_id] = f"{request.request_id}/{next(self._serial)}"
        stream = self._streams[key] = OutputStream()
        num_open = request.num_sequences
        expired = _failed(key, RequestExpiredError(f"more than {max_seconds:g} s old"))
        timer = self._loop.call_later(max_seconds, stream.put, expired)
        try:
            self._send(replace(request, request_id=key))
            while num_open:
                for output in await stream.get():
                    if output.failure is not None and not num_open:
                        # All was said before it went wrong.
                        return
                    if output.failure is not None:
                        num_open = num_open if output is expired else 0
                        raise output.failure.error()
                    num_open -= output.is_last
                    yield msgspec.structs.replace(output, request_id=request.request_id)
        finally:
            timer.cancel()
            del self._streams[key], self._keys[request.request_id]
            if num_open:
                self._send(Abort(key))

    def abort(self, request_id: str) -> bool:
        """Ends a request, with all its prompts; False when it is not running."""
        keys = [key for name, key in self._keys.items() if name.partition(PART)[0] == request_id]
        for key in keys:
            self._send(Abort(key))
        return bool(keys)

    @property
    def request_ids(self) -> list[str]:
        """The requests whose streams are open."""
        return list(dict.fromkeys(name.partition(PART)[0] for name in self._keys))

    def deliver(self, outputs: Iterable[Output]) -> None:
        """What the engine says, by its keys; what no stream waits for is dropped."""
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None and not stream.put(output):
                error = SlowConsumerError("more output waits to be read than one request may hold")
                stream.put(_failed(output.request_id, error))
                self._send(Abort(output.request_id))

    def end_all(self, error: ExpertMeshError) -> None:
        """Each open stream raises the error, after what was there by then."""
        for key, stream in self._streams.items():
            stream.put(_failed(key, error))

    def close(self) -> None:
        """Ends each open stream, and lets none begin."""
        self._closed = True
        for key in self._streams:
            self._send(Abort(key))
        self.end_all(EngineClosedError("the engine was closed"))


def _failed(key: str, error: ExpertMeshError) -> Output:
    return Output(key, failure=Failure.of(error))
