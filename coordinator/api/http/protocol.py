"""One HTTP/1.1 connection of uvicorn's, with bounds that uvicorn has not: time for headers, and numbers."""

import asyncio
import math

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# That the headers of a request may take to arrive, from the connection or from their first byte on.
HEADER_SECONDS = 10.0
MAX_CONNECTIONS = 4096


class BoundedProtocol(H11Protocol):
    """Closes connections that say nothing, or never come to the end of their headers."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS and not self._made_room():
            transport.abort()
        else:
            self._wait_for_headers()

    def _made_room(self) -> bool:
        """The connection that has been quiet longest ends for a new one."""
        ours = (each for each in self.connections if isinstance(each, BoundedProtocol))
        first = min(ours, key=lambda each: each.quiet_until)
        if math.isinf(first.quiet_until):
            return False
        first.shutdown()
        first._unset_keepalive_if_required()
        return True

    @property
    def quiet_until(self) -> float:
        """When it ends if nothing more comes, by the loop's clock; infinite while a request comes or runs."""
        return math.inf if self.timeout_keep_alive_task is None else self.timeout_keep_alive_task.when()

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade is an offer, which a server may pass over; Java's clients make it every time."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
