"""The process of an engine: `python -m coordinator.server.engine_process`, started by the launcher.

It reads the model, has the workers and computes; fronts come to a socket in the server's folder.
"""

import asyncio
import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path

from coordinator.engine.messages.codec import encode
from coordinator.engine.process.server import EngineServer
from coordinator.server.blocks import entered
from coordinator.server.compute import device_of
from coordinator.server.engine_side import open_engine_side
from coordinator.server.experts import describe_workers
from coordinator.server.garbage import without_garbage
from coordinator.server.launcher.control import Control, run
from coordinator.server.launcher.folder import engine_socket, facts_file
from coordinator.server.launcher.messages import Begin, EngineReady, Failed, ModelKnown, UseRay
from coordinator.server.model_facts import read_facts
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_checkpoint import open_checkpoint
from coordinator.server.process import configure_process
from expert_workers.cluster.place import OwnRay, RayPlace
from moe_model.errors import CheckpointError, ClusterError

# As a program its name is another.
logger = logging.getLogger("coordinator.server.engine_process")


async def engine(control: Control, begin: Begin) -> None:
    """Until it is told to stop. Raises ExpertMeshError, of them HaltedError when that comes before it could
    serve."""
    config, halt, phases = begin.config, control.halt, control.phases
    configure_process(config.engine)
    loop = asyncio.get_running_loop()
    own_ray = _own_ray(control, loop, config.workers.start_timeout)
    async with AsyncExitStack() as stack:
        phases("checkpoint")
        checkpoint = await asyncio.to_thread(open_checkpoint, config.checkpoint, phases, halt)
        facts = await asyncio.to_thread(read_facts, checkpoint, config.engine)
        _tell_facts(facts_file(begin.folder), encode(facts))
        control.tell(ModelKnown(checkpoint.location))
        halt.check()
        texts = await asyncio.to_thread(ModelTexts.open, facts)
        stack.callback(texts.close)

        def over(why: str) -> None:
            """On the supervisor's thread."""
            control.tell(Failed(why))

        opened = open_engine_side(checkpoint, config, texts.preparer(), over, phases, halt, own_ray)
        side = await entered(opened, stack)
        server = EngineServer(side.thread, side.operated)
        phases("warm-up")
        await server.serve(engine_socket(begin.folder))
        stack.push_async_callback(server.close)
        await asyncio.to_thread(side.warm_up)
        stack.enter_context(without_garbage())
        halt.check()
        workers, stats = side.operated.workers(), side.thread.stats()
        for line in describe_workers(workers.workers):
            logger.info("%s", line)
        ready = EngineReady(
            device=str(device_of(config.engine)),
            num_workers=sum(worker.is_up for worker in workers.workers),
            num_replicas=workers.num_replicas,
            kv_capacity_tokens=stats.kv_capacity_tokens,
        )
        control.tell(ready)
        await _until_either(control.stopped, server.failed)
        if server.failed.is_set():
            # No error of ours: those end the whole server, and another engine may fare better.
            raise RuntimeError("the engine has stopped; the log says why")


async def _until_either(first: asyncio.Event, second: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (first, second)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _own_ray(control: Control, loop: asyncio.AbstractEventLoop, timeout: float) -> OwnRay:
    """For another thread: waits for the launcher to say where it is."""

    def wait() -> RayPlace:
        said = asyncio.run_coroutine_threadsafe(control.first(UseRay), loop)
        try:
            place = said.result(timeout)
        except TimeoutError:
            raise ClusterError(f"Ray has not started within {timeout:g} s (--start-timeout)") from None
        return RayPlace(place.address, place.environment)

    return wait


def _tell_facts(path: Path, data: bytes) -> None:
    """For fronts, also those to come. Raises CheckpointError where an engine before this one had another
    model, as fronts do."""
    if path.exists():
        if path.read_bytes() != data:
            raise CheckpointError("the checkpoint is not what it was when the server started: start it again")
        return
    new = path.with_suffix(".new")
    with open(new, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
    new.replace(path)


if __name__ == "__main__":
    os._exit(run(engine))
