"""Gives the engine its own thread, the only writer of its state. All others put commands into its inbox."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from coordinator.engine.core.engine import Engine
from coordinator.engine.core.prepared import Prepared
from coordinator.engine.messages.errors import EngineError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import Request
from coordinator.engine.messages.stats import EngineStats
from moe_model.errors import ExpertMeshError
from moe_model.versions.model_version import ModelVersion

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two looks at the experts while there is nothing else to do.
IDLE_INTERVAL = 0.5

# Called on the engine's thread, once per step, with that step's outputs.
Publish = Callable[[Sequence[Output]], None]
# Runs on the engine's thread between two steps; returns what it has to publish.
Command = Callable[[Engine], Sequence[Output]]


class EngineThread:
    """Runs the engine until closed. All methods may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.preparer = engine.preparer
        self._engine = engine
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._stats = engine.stats()
        self._calls: set[Future[Any]] = set()
        self._ended = False

    def start(self, publish: Publish, stopped: Callable[[EngineError], None]) -> None:
        """`stopped` is called on the engine's thread when the engine's own bookkeeping has failed."""
        self._publish, self._stopped = publish, stopped
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Ends the thread after the step it is in; False when that took longer than `timeout`."""
        self._inbox.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, request: Request, prepared: Prepared | None = None) -> None:
        """As Engine.submit; a request that cannot be taken is answered with an Output that says why."""
        self._inbox.put(lambda engine: _submit(engine, request, prepared))

    def abort(self, request_id: str) -> None:
        """Ends a request before the next step; nothing happens when it is not running."""
        self._inbox.put(lambda engine: engine.abort(request_id))

    def stats(self) -> EngineStats:
        """The state after the last step."""
        return self._stats

    def call(self, function: Callable[[Engine], T]) -> Future[T]:
        """Calls it between two steps; the future has what it returns or raises.

        One that is cancelled in time is not called; when the engine is closed first, it is cancelled.
        """
        result: Future[T] = Future()
        self._calls.add(result)
        result.add_done_callback(self._calls.discard)

        def command(engine: Engine) -> Sequence[Output]:
            if not result.set_running_or_notify_cancel():
                return []
            try:
                result.set_result(function(engine))
            except Exception as error:  # noqa: BLE001 - the caller hears of it
                result.set_exception(error)
            except BaseException as error:
                result.set_exception(error)
                raise
            return []

        self._inbox.put(command)
        if self._ended:
            result.cancel()
        return result

    def switch(self, version: ModelVersion) -> Future[None]:
        """Makes requests that come from then on use a version of the model, as Engine.switch."""
        return self.call(lambda engine: engine.switch(version))

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:  # a native library's panic is no Exception
            logger.exception("the engine has stopped")
            error = EngineError("the engine has stopped; its log says why")
            self._publish(self._engine.stop(error))
            self._stats = self._engine.stats()
            # The readers of what was lost with the bookkeeping would not hear of it otherwise.
            self._stopped(error)
            self._serve()
        self._ended = True
        for call in tuple(self._calls):
            call.cancel()

    def _serve(self) -> None:
        while self._obey():
            outputs = self._engine.step() if self._engine.has_work else []
            self._stats = self._engine.stats()
            if outputs:
                self._publish(outputs)

    def _obey(self) -> bool:
        """Carries out what is in the inbox, waiting only when there is nothing else to do."""
        while True:
            try:
                command = self._next_command()
            except queue.Empty:
                return True
            if command is None:
                return False
            outputs = command(self._engine)
            self._stats = self._engine.stats()
            if outputs:
                self._publish(outputs)

    def _next_command(self) -> Command | None:
        """Raises queue.Empty when there is none and the engine has work."""
        while not self._engine.has_work:
            try:
                return self._inbox.get(timeout=IDLE_INTERVAL)
            except queue.Empty:
                self._engine.idle()
        return self._inbox.get(block=False)


def _submit(engine: Engine, request: Request, prepared: Prepared | None) -> Sequence[Output]:
    try:
        engine.submit(request, prepared)
    except ExpertMeshError as error:
        return [Output(request.request_id, failure=Failure.of(error))]
    except Exception:
        logger.exception("a request could not be taken")
        failure = Failure.of(EngineError("a request could not be taken"))
        return [Output(request.request_id, failure=failure)]
    return []
