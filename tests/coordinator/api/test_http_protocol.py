"""Connections that want to be waited for are not; over a real socket."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from coordinator.api import http_protocol
from coordinator.api.http_server import HttpServer
from tests.coordinator.api.fakes import PATIENCE
from tests.coordinator.api.http_fakes import Http

REQUEST = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpServer]:
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 3)
    running = HttpServer("127.0.0.1:0", Http().app)
    running.bind()
    await running.start()
    yield running
    await running.close()


async def connect(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.address.split(":")
    return await asyncio.open_connection(host, int(port))


async def ends(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(1 << 16), PATIENCE) == b""
    except ConnectionError:
        return True


async def is_kept_open(reader: asyncio.StreamReader, seconds: float) -> None:
    """For so long, nothing is said and nothing ends."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), seconds)


@pytest.mark.parametrize("beginning", [b"", b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: "])
async def test_headers_that_do_not_come(server: HttpServer, beginning: bytes) -> None:
    reader, writer = await connect(server)
    writer.write(beginning)
    assert await ends(reader)
    writer.close()


async def test_headers_that_come_in_time_and_again(server: HttpServer) -> None:
    """Also later than the first headers' time, for each request has its own."""
    reader, writer = await connect(server)
    for _ in range(3):
        writer.write(REQUEST[:10])
        await is_kept_open(reader, 0.5)
        writer.write(REQUEST[10:])
        answer = await asyncio.wait_for(reader.readuntil(b"{}"), PATIENCE)
        assert answer.startswith(b"HTTP/1.1 200")
    writer.write(REQUEST[:10])
    assert await ends(reader)
    writer.close()


async def test_more_connections_than_there_may_be(server: HttpServer) -> None:
    held = [await connect(server) for _ in range(3)]
    reader, writer = await connect(server)
    assert await ends(reader)
    for _, open_writer in [*held, (reader, writer)]:
        open_writer.close()
