"""The kinds of EngineClient, each made over an engine that is not started yet."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from coordinator.engine.client.base import EngineClient
from coordinator.engine.client.handlers import Operated
from coordinator.engine.client.in_process import InProcessEngine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import ScaleWorkers
from coordinator.engine.messages.errors import NoCommandError
from coordinator.engine.process.client import ProcessEngine
from coordinator.engine.process.server import EngineServer

# Seconds.
PATIENCE = 30.0
MakeClient = Callable[..., Awaitable[EngineClient]]


async def in_process(thread: EngineThread, operated: Operated | None = None) -> EngineClient:
    return InProcessEngine(thread, operated)


class OwnedEngine(ProcessEngine):
    """Over a socket whose other end is in this process too; closing ends both."""

    server: EngineServer

    async def close(self, timeout: float = 10.0) -> bool:
        await super().close(timeout)
        return await self.server.close(timeout)


async def over_a_socket(thread: EngineThread, operated: Operated | None = None) -> EngineClient:
    server = EngineServer(thread, operated)
    # The socket's name is needed no longer than until it is connected.
    with tempfile.TemporaryDirectory(prefix="expertmesh-") as folder:
        path = Path(folder) / "engine"
        await server.serve(path)
        engine = await OwnedEngine.connect(path, PATIENCE)
    engine.server = server
    return engine


CLIENTS: dict[str, MakeClient] = {"in process": in_process, "over a socket": over_a_socket}


async def heard(engine: EngineClient) -> None:
    """Returns when the engine's side has received all that was said so far."""
    with pytest.raises(NoCommandError):
        await asyncio.to_thread(engine.call, ScaleWorkers(1, 0.0))
