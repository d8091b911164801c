"""Serving until a signal says stop: what `expertmesh serve` does around a running server."""

import asyncio
import logging
from typing import Any

from coordinator.config.serve import ServeConfig
from coordinator.server.compute import device_of
from coordinator.server.experts import describe_workers
from coordinator.server.main import RunningServer, open_server
from coordinator.server.phases import UNTOLD, Phases
from coordinator.server.ready import Ready
from coordinator.server.stop import Stop
from coordinator.server.stop_signals import signals_heard_by
from moe_model.errors import HaltedError

logger = logging.getLogger(__name__)


async def serve(config: ServeConfig, phases: Phases = UNTOLD) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises ExpertMeshError when it cannot begin."""
    stop = Stop()
    with signals_heard_by(stop.hear):
        try:
            failure = await _serve(config, stop, phases)
        except HaltedError:
            # Told before it could serve.
            failure = None
    logger.info("stopped")
    return 0 if failure is None else 1


async def _serve(config: ServeConfig, stop: Stop, phases: Phases) -> str | None:
    """Returns why it stopped by itself; None when it was told to. Raises HaltedError when told to while it
    starts."""
    async with open_server(config, phases, stop.halt) as server:
        stop.halt.check()
        phases.done()
        _announce(config, server)
        failure = await _until_stopped(server, stop)
        num_calls = server.fronts.gate.num_calls
        logger.info("draining %d calls, for at most %g s", num_calls, config.calls.drain_timeout)
        is_urgent = stop.is_terminal or failure is not None
        # For balancers to hear of it.
        grace = 0.0 if is_urgent else config.calls.withdrawal_grace
        await stop.or_second(server.fronts.drain(grace, config.calls.drain_timeout))
    return failure


async def _until_stopped(server: RunningServer, stop: Stop) -> str | None:
    """Returns why the server must stop by itself; None when it was told to."""
    told = asyncio.ensure_future(stop.first.wait())
    either: list[asyncio.Future[Any]] = [told, server.failed]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not server.failed.done():
        return None
    logger.error("stopping: %s", server.failed.result())
    return server.failed.result()


def _announce(config: ServeConfig, server: RunningServer) -> None:
    """Where the experts are goes to the log."""
    status = server.engine.workers()
    ready = Ready(
        where=server.fronts.describe(),
        num_workers=sum(worker.is_up for worker in status.workers),
        num_replicas=status.num_replicas,
        dtype=config.engine.dtype,
        device=str(device_of(config.engine)),
        max_context=server.model.max_context,
        kv_capacity_tokens=server.model.kv_capacity_tokens,
        startup_seconds=server.startup_seconds,
    )
    ready.announce()
    for line in describe_workers(status.workers):
        logger.info("%s", line)
