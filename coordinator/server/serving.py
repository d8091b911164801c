"""Serving until a signal says stop: what `expertmesh serve` does around a running server."""

import asyncio
import logging
import signal
import sys
from typing import Any

from coordinator.config.serve import ServeConfig
from coordinator.server.compute import device_of
from coordinator.server.experts import describe_workers
from coordinator.server.fronts import Fronts
from coordinator.server.main import RunningServer, open_server
from coordinator.server.phases import UNTOLD, Phases
from coordinator.server.stop_signals import signals_heard_by
from moe_model.errors import HaltedError
from moe_model.halt import Halt

logger = logging.getLogger(__name__)


async def serve(config: ServeConfig, phases: Phases = UNTOLD) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises ExpertMeshError when it cannot begin."""
    stop = _Stop()
    with signals_heard_by(stop.hear):
        try:
            failure = await _serve(config, stop, phases)
        except HaltedError:
            # Told before it could serve.
            failure = None
    logger.info("stopped")
    return 0 if failure is None else 1


async def _serve(config: ServeConfig, stop: "_Stop", phases: Phases) -> str | None:
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
        await _drain(
            server.fronts,
            stop,
            config.calls.drain_timeout,
            0.0 if is_urgent else config.calls.withdrawal_grace,
        )
    return failure


async def _until_stopped(server: RunningServer, stop: "_Stop") -> str | None:
    """Returns why the server must stop by itself; None when it was told to."""
    told = asyncio.ensure_future(stop.first.wait())
    either: list[asyncio.Future[Any]] = [told, server.failed]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not server.failed.done():
        return None
    logger.error("stopping: %s", server.failed.result())
    return server.failed.result()


class _Stop:
    """SIGTERM, SIGINT, SIGHUP: the first asks to drain, or ends a start; the second to hurry.

    `is_terminal`: the first was Ctrl-C, so a person waits for the prompt, and no balancer has to hear of it.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.halt = Halt()
        self.is_terminal = False
        self._loop = asyncio.get_running_loop()

    def hear(self, number: signal.Signals) -> None:
        """On any thread."""
        self.halt.set()
        self._loop.call_soon_threadsafe(self._note, number)

    def _note(self, number: signal.Signals) -> None:
        if self.first.is_set():
            self.second.set()
        else:
            self.is_terminal = number is signal.SIGINT
            self.first.set()


async def _drain(fronts: Fronts, stop: _Stop, timeout: float, grace: float) -> None:
    """Waits for the admitted calls; a second signal ends the wait. `grace`: for balancers to hear of it."""
    drained = fronts.drain(grace, timeout)
    tasks = [asyncio.ensure_future(drained), asyncio.ensure_future(stop.second.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _announce(config: ServeConfig, server: RunningServer) -> None:
    """The one line on stdout that says the server can serve; where the experts are goes to the log."""
    device = device_of(config.engine)
    dtype = config.engine.dtype
    status = server.engine.workers()
    num_up = sum(worker.is_up for worker in status.workers)
    sys.stdout.write(
        f"READY {server.fronts.describe()} workers={num_up} replicas={status.num_replicas} "
        f"dtype={dtype} device={device} max_context={server.model.max_context} "
        f"kv_tokens={server.model.kv_capacity_tokens} startup_seconds={server.startup_seconds:.2f}\n"
    )
    sys.stdout.flush()
    for line in describe_workers(status.workers):
        logger.info("%s", line)
