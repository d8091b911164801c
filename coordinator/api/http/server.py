"""HttpServer: one port in front of an ASGI app, on the caller's own event loop."""

import asyncio
import socket
import ssl
from contextlib import AbstractContextManager, nullcontext

import uvicorn
from starlette.types import ASGIApp

from coordinator.api.grpc.address import check_free, format_address, parse_address
from coordinator.api.http.protocol import BoundedProtocol
from coordinator.api.http.proxied import Proxied
from coordinator.config.service import CallsConfig
from moe_model.errors import ConfigError

App = ASGIApp

# That a closing server waits for its last answers.
CLOSE_SECONDS = 2


class _Server(uvicorn.Server):
    """Signals are the process's own business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()


class HttpServer:
    """bind, start, close; in this order, on one event loop. close may come at any time."""

    def __init__(
        self,
        address: str,
        app: App,
        tls: ssl.SSLContext | None = None,
        *,
        name: str = "http",
        keep_alive: float = CallsConfig().keep_alive_timeout,
        is_held: bool = False,
    ) -> None:
        """`name` is what errors call the address; a quiet connection is kept for `keep_alive` seconds.
        `is_held`: another process of ours holds the port, for several that listen there."""
        self._name = name
        self._is_held = is_held
        self._host, self._port = parse_address(address, name)
        config = uvicorn.Config(
            Proxied(app),
            # Which would believe anything, and look into the environment for whom.
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            h11_max_incomplete_event_size=16 << 10,
            timeout_keep_alive=keep_alive,  # type: ignore[arg-type]  # which it only waits for
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT; the port is the real one once bound."""
        return format_address(self._host, self._port)

    def bind(self) -> str:
        """Takes the port. Raises ConfigError."""
        if not self._is_held:
            check_free(self._host, self._port, self._name)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # Named as TCP, or asyncio leaves Nagle's algorithm on and each small write waits 40 ms.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(self._is_held))
        try:
            self._socket.bind((self._host, self._port))
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"{self._name} address {self.address}: {error.strerror}") from None
        self._socket.set_inheritable(False)
        self._port = self._socket.getsockname()[1]
        return self.address

    async def start(self) -> None:
        assert self._socket is not None
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await self._server.begun.wait()

    async def set_serving(self, serving: bool) -> None:
        """Clients ask for readiness at /health; nothing has to be sent."""

    async def close(self) -> None:
        """Ends everything that still runs and gives the port back. Idempotent."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
            self._task = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
