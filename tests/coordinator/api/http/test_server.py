"""The port under the HTTP API."""

import statistics
import time

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coordinator.api.http.server import HttpServer

# A sleeping receiver's acknowledgement, for which an unlucky sender waits.
DELAYED_ACK = 0.040


async def test_small_answers_on_one_connection_wait_for_no_acknowledgement() -> None:
    """Of a few medians the best: what other programs on this machine take is not looked at."""

    async def answer(request: Request) -> Response:
        return Response(b"{}")

    server = HttpServer("127.0.0.1:0", Starlette(routes=[Route("/", answer)]))
    server.bind()
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://{server.address}", verify=False) as client:

        async def seconds() -> float:
            started = time.perf_counter()
            await client.get("/")
            return time.perf_counter() - started

        medians = [statistics.median([await seconds() for _ in range(9)]) for _ in range(3)]
    await server.close()
    assert min(medians) < DELAYED_ACK / 2
