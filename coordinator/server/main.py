"""A whole server in one process: its fronts and its engine, in the order in which they open and close.

The ports are taken first, so that a taken one shows before anything costly starts; loading runs on other
threads, so that health checks are answered and a signal is heard meanwhile.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from coordinator.api.shared.served_model import ServedModel
from coordinator.config.serve import ServeConfig
from coordinator.engine.client.base import EngineClient
from coordinator.engine.client.handlers import Operated
from coordinator.engine.client.in_process import InProcessEngine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.server.blocks import entered
from coordinator.server.engine_side import open_engine_side
from coordinator.server.front_side import open_front_side
from coordinator.server.fronts import Fronts
from coordinator.server.garbage import without_garbage
from coordinator.server.model_facts import read_facts
from coordinator.server.open_checkpoint import open_checkpoint
from coordinator.server.phases import UNTOLD, Phases
from moe_model.halt import Halt


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that can serve. `failed` says why it must stop, if it must."""

    model: ServedModel
    fronts: Fronts
    engine: EngineClient
    startup_seconds: float
    failed: "asyncio.Future[str]"


# Makes a client over an engine that is not started yet; closing it ends both.
MakeClient = Callable[[EngineThread, Operated], Awaitable[EngineClient]]


async def in_process(thread: EngineThread, operated: Operated) -> EngineClient:
    return InProcessEngine(thread, operated)


@asynccontextmanager
async def open_server(
    config: ServeConfig,
    phases: Phases = UNTOLD,
    halt: Halt | None = None,
    make_client: MakeClient = in_process,
) -> AsyncIterator[RunningServer]:
    """A whole server, ready; everything it started ends with the block. Raises ExpertMeshError, of them
    HaltedError soon after `halt` was set; it has not served then."""
    halt = halt or Halt()
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[str] = loop.create_future()

    def over(why: str) -> None:
        """On the supervisor's thread; once."""
        loop.call_soon_threadsafe(failed.set_result, why)

    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(open_front_side(config))
        phases("checkpoint")
        checkpoint = await asyncio.to_thread(open_checkpoint, config.checkpoint, phases, halt)
        halt.check()
        model = await front.read(await asyncio.to_thread(read_facts, checkpoint, config.engine))
        # The engine builds constraints where the fronts have checked them.
        preparer = model.texts.preparer()
        opened = open_engine_side(checkpoint, config, preparer, over, phases, halt)
        side = await entered(opened, stack)
        engine = await make_client(side.thread, side.operated)
        stack.push_async_callback(engine.close)
        phases("warm-up")
        await asyncio.to_thread(side.warm_up)
        stack.enter_context(without_garbage())
        halt.check()
        served = await front.open(model.served, engine)
        yield RunningServer(served, front.fronts, engine, time.monotonic() - started, failed)
