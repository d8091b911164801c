"""`expertmesh serve` with engine and fronts in processes: from the first port to the last signal."""

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

from coordinator.config.serve import ServeConfig
from coordinator.server.launcher.launcher import Launcher
from coordinator.server.launcher.messages import EngineReady
from coordinator.server.launcher.ports import held_ports
from coordinator.server.phases import UNTOLD, Phases
from coordinator.server.ready import Ready
from coordinator.server.stop import Stop
from coordinator.server.stop_signals import signals_heard_by
from expert_workers.cluster.own_folder import OwnFolder
from moe_model.errors import HaltedError

logger = logging.getLogger(__name__)


async def launch(config: ServeConfig, phases: Phases = UNTOLD) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises ExpertMeshError when it cannot begin."""
    stop = Stop()
    with signals_heard_by(stop.hear), held_ports(config.addresses) as addresses:
        folder = OwnFolder()
        try:
            failure = await _launch(replace(config, addresses=addresses), folder, stop, phases)
        except HaltedError:
            # Told before it could serve.
            failure = None
        finally:
            folder.remove()
    logger.info("stopped")
    return 0 if failure is None else 1


async def _launch(config: ServeConfig, folder: OwnFolder, stop: Stop, phases: Phases) -> str | None:
    """Returns why it stopped by itself; None when it was told to. Raises HaltedError when told to while it
    starts. What it has started has ended then."""
    started, launcher = time.monotonic(), Launcher(config, folder.path, phases)
    try:
        engine = await stop.halt.unless_set(launcher.start())
        stop.halt.check()
        phases.done()
        _announce(config, launcher.max_context, engine, time.monotonic() - started)
        failure = await _until_stopped(launcher, stop)
        launcher.halt()
        is_urgent = stop.is_terminal or failure is not None
        grace = 0.0 if is_urgent else config.calls.withdrawal_grace
        await stop.or_second(launcher.drain(grace, config.calls.drain_timeout))
        if stop.second.is_set():
            await launcher.drain(0.0, 0.0)
    finally:
        await launcher.end()
    return failure


async def _until_stopped(launcher: Launcher, stop: Stop) -> str | None:
    """Returns why the server must stop by itself; None when it was told to."""
    told = asyncio.ensure_future(stop.first.wait())
    either: list[asyncio.Future[Any]] = [told, launcher.failed]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not launcher.failed.done():
        return None
    logger.error("stopping: %s", launcher.failed.result())
    return launcher.failed.result()


def _announce(config: ServeConfig, max_context: int, engine: EngineReady, seconds: float) -> None:
    ready = Ready(
        where=" ".join(f"{name}={address}" for name, address in config.addresses.all().items()),
        num_workers=engine.num_workers,
        num_replicas=engine.num_replicas,
        dtype=config.engine.dtype,
        device=engine.device,
        max_context=max_context,
        kv_capacity_tokens=engine.kv_capacity_tokens,
        startup_seconds=seconds,
    )
    ready.announce()
