"""Where requests arrive on the engine's side: each is prepared, and only then meets the engine's steps."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.errors import EngineError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import Abort, Request
from moe_model.errors import ExpertMeshError

logger = logging.getLogger(__name__)


class Receiver:
    """Takes messages on one event loop, in their order."""

    def __init__(self, thread: EngineThread, publish: Callable[[Sequence[Output]], None]) -> None:
        """`publish` is told, on the loop, of requests that cannot be prepared."""
        self._thread = thread
        self._publish = publish
        # By key: requests whose constraints are being built, and those of them that were aborted meanwhile.
        self._building: dict[str, asyncio.Task[None]] = {}
        self._aborted: set[str] = set()

    def receive(self, message: Request | Abort) -> None:
        """Never waits. A request whose constraint has to be built waits outside the engine."""
        key = message.request_id
        if isinstance(message, Request):
            self._begin(message)
        elif key in self._building:
            self._aborted.add(key)
        else:
            self._thread.abort(key)

    def close(self) -> None:
        """Requests that wait do not begin any more."""
        for task in self._building.values():
            task.cancel()

    def _begin(self, request: Request) -> None:
        try:
            prepared = self._thread.preparer.at_once(request)
        except Exception as error:  # noqa: BLE001 - the request's reader hears of it
            self._refuse(request, error)
            return
        if prepared is None:
            self._building[request.request_id] = asyncio.create_task(self._build(request))
        else:
            self._thread.submit(request, prepared)

    async def _build(self, request: Request) -> None:
        key = request.request_id
        try:
            prepared = await asyncio.to_thread(self._thread.preparer.prepare, request)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the reader hears of it; a library's panic is no Exception
            self._refuse(request, error)
        else:
            self._thread.submit(request, prepared)
            if key in self._aborted:
                self._thread.abort(key)
        finally:
            del self._building[key]
            self._aborted.discard(key)

    def _refuse(self, request: Request, error: BaseException) -> None:
        if not isinstance(error, ExpertMeshError):
            logger.error("a request could not be prepared", exc_info=error)
            error = EngineError("a request could not be taken")
        self._publish([Output(request.request_id, failure=Failure.of(error))])
