"""A scripted server on an event loop of its own thread, for tests that block."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from coordinator.api.shared.served_model import ServedModel
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, Running, running


@dataclass
class Background:
    """What a blocking test needs of a server elsewhere."""

    address: str
    engine: FakeEngine
    service: Running
    loop: asyncio.AbstractEventLoop

    def wait_for(self, event: asyncio.Event) -> None:
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(event.wait(), PATIENCE), self.loop).result()


@contextmanager
def serving(
    engine: FakeEngine | None = None, model: ServedModel | None = None, *, ready: bool = True
) -> Iterator[Background]:
    started: list[Background] = []
    bound, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with running(engine, model, ready=ready) as service:
            loop = asyncio.get_running_loop()
            started.append(Background(service.server.address, service.engine, service, loop))
            bound.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert bound.wait(PATIENCE), "the server did not start"
        yield started[0]
    finally:
        if started:
            started[0].loop.call_soon_threadsafe(stop.set)
        thread.join()
