"""The process of a front: `python -m coordinator.server.front_process`, started by the launcher.

It takes requests and answers them, with what an engine in another process computes.
"""

import asyncio
import logging
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

from coordinator.engine.messages.codec import decode
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.engine.process.client import ProcessEngine
from coordinator.metrics.ledger import Ledger
from coordinator.server.front_side import open_front_side
from coordinator.server.fronts import Fronts
from coordinator.server.garbage import without_garbage
from coordinator.server.launcher.control import Control, run
from coordinator.server.launcher.folder import engine_socket, facts_file
from coordinator.server.launcher.messages import Begin, Drain, Drained, EngineReady, FrontReady, ModelKnown
from moe_model.errors import ConfigError

# As a program its name is another.
logger = logging.getLogger("coordinator.server.front_process")

# Seconds in which an engine that is ready lets a front in.
_CONNECT_TIMEOUT = 30.0


async def front(control: Control, begin: Begin) -> None:
    """Until it is told to stop. Raises ExpertMeshError, of them HaltedError when that comes before it could
    serve."""
    async with AsyncExitStack() as stack:
        opened = open_front_side(
            begin.config,
            _ledger(begin),
            begin.instance_id,
            has_held_ports=True,
            # Calls that come meanwhile wait a moment for this one, instead of being refused by it.
            answers_early=not begin.is_again,
        )
        side = await stack.enter_async_context(opened)
        # Also one that comes before it serves: the launcher waits for its answer.
        drains = Drains(side.fronts, control)
        stack.push_async_callback(drains.close)
        control.listen(Drain, drains.begin)
        await control.first(ModelKnown)
        facts = decode(await asyncio.to_thread(facts_file(begin.folder).read_bytes))
        assert isinstance(facts, ModelFacts)
        model = await side.read(facts)
        await control.first(EngineReady)
        engine = await ProcessEngine.connect(engine_socket(begin.folder), _CONNECT_TIMEOUT)
        stack.push_async_callback(engine.close)
        stack.enter_context(without_garbage())
        control.halt.check()
        served = await side.open(model.served, engine)

        def again(ready: EngineReady) -> None:
            side.serve(replace(served, kv_capacity_tokens=ready.kv_capacity_tokens), engine)

        control.listen(EngineReady, again)
        control.tell(FrontReady(served.max_context))
        await control.stopped.wait()
        # It may not have been asked to before; whatever still runs is told why it ends.
        await side.fronts.drain(0.0, 0.0)


def _ledger(begin: Begin) -> Ledger:
    """What this front counts with the others of its server, from where one before it ended."""
    try:
        return Ledger.shared(begin.folder, begin.number, begin.config.processes.num_fronts)
    except OSError as error:
        raise ConfigError(f"{begin.folder}: fronts cannot count there: {error.strerror or error}") from None


class Drains:
    """What the launcher asks last counts, as a second signal makes it hurry."""

    def __init__(self, fronts: Fronts, control: Control) -> None:
        self._fronts = fronts
        self._control = control
        self._task: asyncio.Task[None] | None = None

    def begin(self, wanted: Drain) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.ensure_future(self._drain(wanted))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _drain(self, wanted: Drain) -> None:
        logger.info("draining %d calls, for at most %g s", self._fronts.gate.num_calls, wanted.timeout)
        await self._fronts.drain(wanted.grace, wanted.timeout)
        self._control.tell(Drained())


if __name__ == "__main__":
    os._exit(run(front))
