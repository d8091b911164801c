"""The engine in this process, on a thread of its own: nothing is encoded, and outputs come by call."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from coordinator.engine.client.base import NO_LIMIT
from coordinator.engine.client.handlers import Operated, carry_out, engine_handlers
from coordinator.engine.client.receiver import Receiver
from coordinator.engine.client.request_streams import RequestStreams
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.commands import Command
from coordinator.engine.messages.errors import EngineError
from coordinator.engine.messages.metrics import MetricsSnapshot, ReadMetrics
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from moe_model.versions.expert_versions import ExpertModule

R = TypeVar("R")


class InProcessEngine:
    """An EngineClient. Owns the engine's thread; made, used and closed on one event loop."""

    def __init__(self, thread: EngineThread, operated: Operated | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._operated = operated or Operated()
        self._handlers = {**engine_handlers(thread), **self._operated.handlers}
        self._streams = RequestStreams(lambda message: self._receiver.receive(message))
        self._receiver = Receiver(thread, self._streams.deliver)
        thread.start(self._publish, self._stopped)

    def stream(self, request: Request, max_seconds: float = NO_LIMIT) -> AsyncGenerator[Output, None]:
        return self._streams.stream(request, max_seconds)

    async def abort(self, request_ids: Sequence[str] | None = None) -> list[str]:
        wanted = self.request_ids if request_ids is None else dict.fromkeys(request_ids)
        return [request_id for request_id in wanted if self._streams.abort(request_id)]

    @property
    def request_ids(self) -> list[str]:
        return self._streams.request_ids

    def stats(self) -> EngineStats:
        return self._thread.stats()

    def model(self) -> ModelStatus:
        return self._operated.model()

    def workers(self) -> WorkersStatus:
        return self._operated.workers()

    async def current_workers(self) -> WorkersStatus:
        return self.workers()

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        return tuple(self._operated.missing())

    async def counts(self) -> MetricsSnapshot:
        return self.call(ReadMetrics())

    def follow(self, told: Callable[[TracedStep], None]) -> None:
        self._operated.traces.follow(told)

    def call(self, command: Command[R]) -> R:
        return carry_out(self._handlers, command)

    async def close(self, timeout: float = 10.0) -> bool:
        self._streams.close()
        self._receiver.close()
        return await asyncio.to_thread(self._thread.close, timeout)

    def _publish(self, outputs: Sequence[Output]) -> None:
        """Runs on the engine's thread: one wake-up of the loop per step, whatever the batch."""
        # A loop that was closed without closing us first has no reader left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._streams.deliver, outputs)

    def _stopped(self, error: EngineError) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._streams.end_all, error)
