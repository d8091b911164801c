"""Scripted engines in this process, and behind a socket as an engine in a process of its own is.

A module whose tests hold what callers are promised has `pytestmark = BOTH_ENGINES`. A test of what only an
engine in this process does, each of its outputs apart, or a break of its contract, has `IN_PROCESS_ONLY`.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
import pytest_asyncio
from msgspec import structs

from coordinator.engine.client.base import PART
from coordinator.engine.core.prepared import NOTHING, Prepared
from coordinator.engine.messages.errors import EngineError, StepMemoryError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats
from coordinator.engine.process.client import ProcessEngine
from coordinator.engine.process.server import EngineServer
from moe_model.errors import ExpertMeshError

IN_PROCESS, OVER_A_SOCKET = "in process", "over a socket"
KINDS = (IN_PROCESS, OVER_A_SOCKET)
BOTH_ENGINES = pytest.mark.usefixtures("engine_kind")
IN_PROCESS_ONLY = pytest.mark.parametrize("engine_kind", [IN_PROCESS], indirect=True)
_TIMEOUT = 30.0


class Plays(Protocol):
    """Plays the outputs of requests."""

    def play(self, request: Request, max_seconds: float) -> AsyncGenerator[Output, None]: ...


class FarSides:
    """Where the scripted engines of a test are."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._open: list[FarSide] = []

    def of(self, plays: Plays) -> "FarSide | None":
        """Where its requests go, if not to itself."""
        if self.kind == IN_PROCESS:
            return None
        self._open.append(FarSide(plays))
        return self._open[-1]

    async def close(self) -> None:
        """Ends those that nobody else has ended."""
        for side in self._open:
            await side.close()


SIDES = FarSides(IN_PROCESS)


@asynccontextmanager
async def scripted(kind: str) -> AsyncIterator[None]:
    """Scripted engines that are made in the block are of this kind."""
    global SIDES
    before, SIDES = SIDES, FarSides(kind)
    try:
        yield
        await SIDES.close()
    finally:
        SIDES = before


@pytest_asyncio.fixture(params=KINDS)
async def engine_kind(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with scripted(request.param):
        yield request.param


class FarSide:
    """A script behind a socket, and the client in front of it; all on the loop of the first request."""

    def __init__(self, plays: Plays) -> None:
        self._thread = ScriptedThread(plays)
        self._client: asyncio.Task[ProcessEngine] | None = None
        self._server: EngineServer | None = None

    async def stream(self, request: Request, max_seconds: float) -> AsyncGenerator[Output, None]:
        if self._client is None:
            self._client = asyncio.create_task(self._connect())
        client = await asyncio.shield(self._client)
        async with aclosing(client.stream(request, max_seconds)) as outputs:
            async for output in outputs:
                yield output

    async def close(self) -> None:
        if self._client is None or self._server is None:
            return
        client, self._client = await self._client, None
        await client.close()
        await self._server.close()

    async def _connect(self) -> ProcessEngine:
        # It has what the server asks of an engine's thread.
        self._server = EngineServer(cast(Any, self._thread))
        with tempfile.TemporaryDirectory(prefix="expertmesh-") as folder:
            path = Path(folder) / "engine"
            await self._server.serve(path)
            return await ProcessEngine.connect(path, _TIMEOUT)


class ScriptedThread:
    """In place of an engine's thread: plays scripts on the loop, for requests that come as messages."""

    def __init__(self, plays: Plays) -> None:
        self.preparer = self
        self._plays = plays
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def at_once(self, request: Request) -> Prepared:
        """In place of a preparer."""
        return NOTHING

    def start(self, publish: Callable[[Sequence[Output]], None], stopped: object) -> None:
        self._publish = publish

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._tasks))

    def submit(self, request: Request, prepared: Prepared) -> None:
        task = self._tasks[request.request_id] = asyncio.create_task(self._play(request))
        task.add_done_callback(lambda _: self._tasks.pop(request.request_id, None))

    def abort(self, key: str) -> None:
        if key in self._tasks:
            self._tasks[key].cancel()

    def close(self, timeout: float) -> bool:
        return True

    async def _play(self, request: Request) -> None:
        key = request.request_id
        named = replace(request, request_id=key.rpartition(PART)[0])
        try:
            async with aclosing(self._plays.play(named, 1e9)) as outputs:
                async for output in outputs:
                    self._publish([structs.replace(output, request_id=key)])
        except ExpertMeshError as error:
            self._publish([Output(key, failure=Failure.of(error))])
        except MemoryError as error:
            self._publish([Output(key, failure=Failure.of(StepMemoryError(str(error))))])
        except Exception as error:  # noqa: BLE001 - as an engine's thread does
            self._publish([Output(key, failure=Failure.of(EngineError(str(error))))])
