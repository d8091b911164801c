"""The streams of requests on one event loop, for any engine behind them: merged, bounded, ended in time."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace

from coordinator.engine.client.base import NO_LIMIT, PART
from coordinator.engine.client.output_stream import OutputStream
from coordinator.engine.client.pace import Pace
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


def number_of(key: str) -> int:
    """The number in an engine's key of a request. Raises ValueError where there is none."""
    return int(key.rpartition(PART)[2])


def id_of(key: str) -> str:
    """The id of the request that a key, or the id of one prompt of several, is of."""
    return key.partition(PART)[0]


class RequestStreams:
    """Made and used on one event loop. An engine knows a request by a key, its id and a number that no other
    has: an output of an ended request that is still on its way can then never reach a new request with the
    same id."""

    def __init__(self, send: Callable[[Request | Abort], None]) -> None:
        """`send` tells the engine, and never waits; the engine's answers go to `deliver`."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._serial = itertools.count()
        self._keys: dict[str, str] = {}
        self._streams: dict[int, OutputStream] = {}
        # Those whose readers have not been told of their last tokens, by their numbers.
        self._untold: dict[int, OutputStream] = {}
        self._pace = Pace(self._tell, self._loop)
        self._closed = False

    async def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]:
        """As RequestEngine says."""
        if self._closed:
            raise EngineClosedError("the engine is closed")
        if request.request_id in self._keys:
            raise DuplicateRequestError(f"request_id: {request.request_id} is already running")
        number = next(self._serial)
        key = self._keys[request.request_id] = f"{request.request_id}{PART}{number}"
        stream = self._streams[number] = OutputStream(request.request_id)
        num_open = request.num_sequences
        expired = _failed(request.request_id, RequestExpiredError(f"more than {max_seconds:g} s old"))
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
                    yield output
        finally:
            timer.cancel()
            del self._streams[number], self._keys[request.request_id]
            if num_open:
                self._send(Abort(key))

    def abort(self, request_id: str) -> bool:
        """Ends a request, with all its prompts; False when it is not running."""
        keys = [key for name, key in self._keys.items() if id_of(name) == request_id]
        for key in keys:
            self._send(Abort(key))
        return bool(keys)

    @property
    def request_ids(self) -> list[str]:
        """The requests whose streams are open."""
        return list(dict.fromkeys(map(id_of, self._keys)))

    def deliver(self, outputs: Iterable[Output]) -> None:
        """What the engine says, by its keys; what no stream waits for is dropped."""
        for output in outputs:
            self.deliver_one(number_of(output.request_id), output)

    def deliver_one(self, number: int, output: Output) -> None:
        """News of the request with this number, whatever id is in them."""
        stream = self._streams.get(number)
        if stream is not None and not stream.put(output):
            self._end_slow(stream)

    def deliver_tokens(self, tokens: Iterable[tuple[int, int, int]]) -> None:
        """Outputs that are one token each, and neither the first nor the last of a request: number of the
        request, index of the sequence, token id. Readers are told of them as `Pace` says."""
        streams, untold = self._streams, self._untold
        for number, index, token_id in tokens:
            stream = streams.get(number)
            if stream is None:
                continue
            if stream.put_token(index, token_id):
                untold[number] = stream
            else:
                self._end_slow(stream)
        if untold and len(streams) == 1:
            # Its latency is worth more than what it costs.
            self._tell()
        elif untold:
            self._pace.due()

    def _tell(self) -> None:
        told, self._untold = self._untold, {}
        for stream in told.values():
            stream.wake()

    def end_all(self, error: ExpertMeshError) -> None:
        """Each open stream raises the error, after what was there by then."""
        for stream in self._streams.values():
            stream.put(_failed(stream.request_id, error))

    def close(self) -> None:
        """Ends each open stream, and lets none begin."""
        self._closed = True
        self._pace.close()
        for key in self._keys.values():
            self._send(Abort(key))
        self.end_all(EngineClosedError("the engine was closed"))

    def _end_slow(self, stream: OutputStream) -> None:
        error = SlowConsumerError("more output waits to be read than one request may hold")
        stream.put(_failed(stream.request_id, error))
        self._send(Abort(self._keys[stream.request_id]))


def _failed(request_id: str, error: ExpertMeshError) -> Output:
    return Output(request_id, failure=Failure.of(error))
