"""Both ends of the socket in one process: an engine's thread in the test's hand, and fronts of it."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from coordinator.engine.client.handlers import Operated
from coordinator.engine.core.engine_thread import EngineThread, Publish
from coordinator.engine.core.prepared import NO_VOCABULARY, Prepared
from coordinator.engine.messages.errors import EngineError
from coordinator.engine.messages.output import Output, PromptDetails, RoutedExperts
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats
from coordinator.engine.process.client import ProcessEngine
from coordinator.engine.process.frames import frame_of
from coordinator.engine.process.server import EngineServer
from tests.models import make_request

PATIENCE = 30.0


class SpokenThread(EngineThread):
    """Says what the test says, whatever was asked of it."""

    def __init__(self) -> None:
        self.preparer = NO_VOCABULARY
        self.now = EngineStats(kv_capacity_tokens=7)
        # By what comes before the slash of the key: the keys of all requests, in their order.
        self.keys: dict[str, list[str]] = {}
        self.requests: list[Request] = []
        self.aborted: list[str] = []

    def start(self, publish: Publish, stopped: Callable[[EngineError], None]) -> None:
        self.say, self.fail = publish, stopped

    def close(self, timeout: float) -> bool:
        return True

    def submit(self, request: Request, prepared: Prepared | None = None) -> None:
        self.requests.append(request)
        self.keys.setdefault(request.request_id.partition("/")[0], []).append(request.request_id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def stats(self) -> EngineStats:
        return self.now


@asynccontextmanager
async def serving(
    thread: EngineThread, operated: Operated | None = None, path: Path | None = None
) -> AsyncIterator[Path]:
    """An engine's end; gives the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        path = path or Path(folder) / "engine"
        server = EngineServer(thread, operated)
        await server.serve(path)
        try:
            yield path
        finally:
            assert await server.close()


@asynccontextmanager
async def linked(
    thread: EngineThread, num_fronts: int = 1, operated: Operated | None = None
) -> AsyncIterator[list[ProcessEngine]]:
    async with AsyncExitStack() as stack:
        path = await stack.enter_async_context(serving(thread, operated))
        fronts = [await ProcessEngine.connect(path, PATIENCE) for _ in range(num_fronts)]
        for front in fronts:
            stack.push_async_callback(front.close)
        yield fronts


async def until(condition: Callable[[], object]) -> None:
    """Turns of the loop, until it holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def turn() -> None:
    """One turn of the loop."""
    await asyncio.sleep(0)


def request_of(name: str, num_sequences: int = 1) -> Request:
    return replace(make_request(name), num_sequences=num_sequences)


async def read(front: ProcessEngine, request: Request) -> list[Output]:
    """Raises the request's error."""
    return [output async for output in front.stream(request)]


def raw_front(path: Path) -> socket.socket:
    """What connects to an engine and says what a test says; blocks."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    return sock


def frames(*messages: object) -> bytes:
    return b"".join(map(frame_of, messages))


def flood(key: str, num_bytes: int = 1 << 20) -> Output:
    """By default more than a socket takes at once."""
    ids_TLK = np.zeros((num_bytes, 1, 1), np.uint8)
    return Output(key, prompt=PromptDetails(0, (), (RoutedExperts(0, ids_TLK),)))


@contextmanager
def deaf(front: ProcessEngine) -> Iterator[None]:
    """A front that reads nothing meanwhile."""
    channel = front._connection.channel
    assert channel is not None
    loop = asyncio.get_running_loop()
    loop.remove_reader(channel._sock)
    yield
    loop.add_reader(channel._sock, channel._read)


def cut(front: ProcessEngine) -> None:
    """Ends its connection, as the death of either side does: nothing is said before."""
    channel = front._connection.channel
    assert channel is not None
    channel._sock.shutdown(socket.SHUT_RDWR)
