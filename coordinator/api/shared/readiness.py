"""Readiness: whether the server can serve right now, and if not, why. Knows no transport.

STARTING --open--> watched: READY <-> NOT READY --drain--> DRAINING
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from coordinator.config.service import ReadinessConfig
from coordinator.engine.messages.stats import EngineStats
from moe_model.versions.expert_versions import ExpertModule

logger = logging.getLogger(__name__)

STARTING, DRAINING = "starting", "draining"
# So many missing experts are named.
MAX_NAMED = 32


@dataclass(frozen=True, slots=True)
class Sources:
    """What there is to look at. `missing_experts` are those that no live worker holds."""

    stats: Callable[[], EngineStats]
    missing_experts: Callable[[], Sequence[ExpertModule]]


class Readiness:
    """Looks at the sources again and again, and tells its listeners what has changed."""

    def __init__(self, config: ReadinessConfig | None = None) -> None:
        self._config = config or ReadinessConfig()
        self._sources: Sources | None = None
        self._listeners: list[Callable[[bool], Awaitable[None]]] = []
        self._reasons: tuple[str, ...] = (STARTING,)
        self._num_bad = 0
        self._stall = _Stall(self._config.stall_timeout)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the server is not ready; nothing when it is."""
        return self._reasons

    def listen(self, listener: Callable[[bool], Awaitable[None]]) -> None:
        """`listener` is awaited with every change."""
        self._listeners.append(listener)

    async def open(self, sources: Sources) -> None:
        """The server is up; from now on it is what the sources say."""
        self._sources = sources
        await self._set(())

    async def drain(self) -> None:
        """Not ready, whatever is found from now on."""
        self._sources = None
        await self._set((DRAINING,))

    async def watch(self) -> None:
        """Looks once per interval, for ever."""
        while True:
            await self.look(time.monotonic())
            await asyncio.sleep(self._config.interval)

    async def look(self, now: float) -> None:
        """One look: good news counts at once, bad news when it is told `patience` times in a row."""
        if self._sources is None:
            return
        problems = self._problems(self._sources, now)
        self._num_bad = self._num_bad + 1 if problems else 0
        if not problems or self._reasons or self._num_bad >= self._config.patience:
            await self._set(problems)

    def _problems(self, sources: Sources, now: float) -> tuple[str, ...]:
        stats, missing = sources.stats(), sources.missing_experts()
        problems = []
        if stats.lost:
            problems.append("the engine has died; it is started again")
        elif stats.stopped:
            problems.append("the engine has stopped")
        elif stats.silent_seconds >= self._config.stall_timeout:
            problems.append(f"nothing heard of the engine for {self._config.stall_timeout:g} s")
        if missing:
            problems.append(f"{len(missing)} experts have no live worker: {_named(missing)}")
        if self._stall.lasts(stats, now):
            problems.append(f"no step in {self._config.stall_timeout:g} s")
        return tuple(problems)

    async def _set(self, reasons: tuple[str, ...]) -> None:
        changed = bool(reasons) != bool(self._reasons)
        if reasons != self._reasons:
            logger.info("%s", f"not ready: {'; '.join(reasons)}" if reasons else "ready")
        self._reasons = reasons
        if changed:
            for listener in self._listeners:
                await listener(not reasons)


def _named(modules: Sequence[ExpertModule]) -> str:
    """By layer, as many as a line can have."""
    layers: dict[int, list[str]] = {}
    for module in modules[:MAX_NAMED]:
        layers.setdefault(module.layer, []).append(str(module.expert))
    shown = "; ".join(f"layer {layer}: {', '.join(experts)}" for layer, experts in layers.items())
    return shown + (", ..." if len(modules) > MAX_NAMED else "")


class _Stall:
    """How long requests have been running without a step."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._num_steps = -1
        self._since = 0.0

    def lasts(self, stats: EngineStats, now: float) -> bool:
        if stats.num_steps != self._num_steps or not stats.num_running + stats.num_waiting:
            self._num_steps, self._since = stats.num_steps, now
        return now - self._since >= self._timeout
