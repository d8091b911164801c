"""GrpcServer: the public port. Opens its gate to callers, and closes it on the way down."""

import logging
from collections.abc import Sequence

import grpc

from coordinator.api.grpc.methods import method_handlers
from coordinator.api.grpc.port import GrpcPort
from coordinator.api.grpc.service import SERVICE, WRITE_STALL_TIMEOUT, GenerationService, behaviours
from coordinator.api.grpc.unknown_fields import UnknownFields
from coordinator.api.requests.gate import Backend, Gate
from coordinator.api.requests.responses import Front
from coordinator.api.shared.served_model import ServedModel
from coordinator.engine.client.base import RequestEngine

logger = logging.getLogger(__name__)


class GrpcServer(GrpcPort):
    """bind, start, set_ready, drain, close; in this order, on one event loop. close may come at any time.

    Fronts that share a gate drain together: each of them waits for the calls of all.
    """

    def __init__(
        self,
        address: str,
        front: Front | None = None,
        *,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        with_reflection: bool = True,
        is_held: bool = False,
        write_stall_timeout: float = WRITE_STALL_TIMEOUT,
        unknown: UnknownFields | None = None,
    ) -> None:
        front = front or Front(Gate())
        self._gate = front.gate
        service = GenerationService(front, write_stall_timeout=write_stall_timeout)
        super().__init__(
            address,
            {SERVICE.full_name: method_handlers(SERVICE, behaviours(service), unknown)},
            credentials=credentials,
            interceptors=interceptors,
            with_reflection=with_reflection,
            is_held=is_held,
        )

    @property
    def num_calls(self) -> int:
        """Calls being answered."""
        return self._gate.num_calls

    async def set_ready(self, model: ServedModel, engine: RequestEngine) -> None:
        """Lets callers in; before, they are refused as NOT_READY."""
        self._gate.open(Backend(model, engine))
        await self.set_serving(serving=True)

    async def drain(self, timeout: float, grace: float = 0.0) -> bool:
        """Refuses new calls and waits for the admitted ones; False when it had to end some of them.

        For `grace` seconds before that, health says NOT_SERVING and new calls are still admitted. Ended calls
        get UNAVAILABLE; their requests are aborted in the engine.
        """
        if grace > 0:
            await self.withdraw(grace)
        self._gate.drain()
        await self.withdraw()
        if await self._gate.wait_idle(timeout):
            return True
        logger.warning("ending %d calls that outlasted the drain timeout", self._gate.num_calls)
        await self._gate.end_calls()
        return False

    async def close(self) -> None:
        """Ends everything that still runs and gives the port back. Idempotent."""
        self._gate.drain()
        await self._gate.end_calls()
        await super().close()
