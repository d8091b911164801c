"""Connections that want to be waited for are not; over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coordinator.api.http import protocol as http_protocol
from coordinator.api.http.server import CLOSE_SECONDS, HttpServer
from coordinator.config.service import CallsConfig
from tests.coordinator.api.fakes import PATIENCE
from tests.coordinator.api.http_fakes import Http

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REQUEST = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpServer]:
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 3)
    async with listening() as running:
        yield running


@asynccontextmanager
async def listening(**more: float) -> AsyncIterator[HttpServer]:
    running = HttpServer("127.0.0.1:0", Http().app, **more)  # type: ignore[arg-type]
    running.bind()
    await running.start()
    yield running
    await running.close()


async def connect(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.address.split(":")
    return await asyncio.open_connection(host, int(port))


@asynccontextmanager
async def connected(
    server: HttpServer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await connect(server)
    try:
        yield reader, writer
    finally:
        writer.close()


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(REQUEST)
    assert (await asyncio.wait_for(reader.readuntil(b"{}"), PATIENCE)).startswith(b"HTTP/1.1 200")


async def completion(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readuntil(b"}}}"), PATIENCE)


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


async def test_a_quiet_connection_is_kept_as_long_as_it_was_said() -> None:
    async with listening(keep_alive=0.2) as server, connected(server) as (reader, writer):
        await asked(reader, writer)
        assert await ends(reader)


def test_it_is_kept_longer_than_proxies_keep_theirs() -> None:
    assert CallsConfig().keep_alive_timeout > 75


async def test_a_server_that_closes_waits_for_no_quiet_connection() -> None:
    async with listening(keep_alive=3600) as server, connected(server) as (reader, writer):
        await asked(reader, writer)
        await asyncio.wait_for(server.close(), CLOSE_SECONDS)
        assert await ends(reader)


async def test_a_quiet_connection_gives_way_where_there_are_too_many(server: HttpServer) -> None:
    """The one that has been quiet longest."""
    async with connected(server), connected(server) as first, connected(server) as second:
        await asked(*first)
        await asked(*second)
        async with connected(server) as third:
            await asked(*third)
            assert await ends(first[0])
            await asked(*second)


BODY = b'{"prompt": [5]}'
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "head",
    [
        POST + b"expect: 100-continue\r\n",
        POST + b"Expect: 100-Continue\r\nconnection: Keep-Alive\r\n",
        b"POST http://elsewhere:8000/v1/completions HTTP/1.1\r\nhost: elsewhere\r\n",
        b"POST /v1/completions?api-version=2024-10-21 HTTP/1.1\r\nhost: x\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost:\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHOST: \xff\xfe.example:99999\r\n",
        b"POST /v1/completions HTTP/1.0\r\nconnection: keep-alive\r\n",
        POST + b"upgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nconnection: Upgrade, HTTP2-Settings\r\n",
        POST + b"connection: upgrade\r\nupgrade: websocket\r\n",
        POST + b"te: trailers\r\nvia: 1.1 x\r\nx-forwarded-host: a\r\nx-forwarded-proto: gopher\r\n",
        POST + b"x-forwarded-for: \xff\x1b[31m, unknown, [::1\r\nforwarded: for=;;\r\n",
        POST + b"accept: image/png\r\naccept-encoding: br\r\naccept-charset: utf-7\r\norigin: null\r\n",
        POST + b"cookie: a=b\r\nrange: bytes=0-1\r\nif-match: x\r\nprefer: wait=x\r\n",
        POST + b"authorization: Basic \xff\r\nauthorization: x\r\n",
        POST + b"grpc-timeout: 1x\r\nx-request-id:\r\ntraceparent: \xff\r\ntracestate: =,;\r\n",
    ],
)
async def test_headers_of_proxies_do_no_harm(
    server: HttpServer, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice on one connection, for it must be as good as before."""
    async with connected(server) as (reader, writer):
        for _ in range(1 if b"HTTP/1.0" in head else 2):
            writer.write(head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
            assert (await completion(reader)).removeprefix(CONTINUE).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_a_body_in_chunks_with_trailers(server: HttpServer) -> None:
    async with connected(server) as (reader, writer):
        writer.write(POST + b"transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n")
        writer.write(b"5;a=b\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n")
        writer.write(b"0\r\nx-sum: 1\r\n\r\n")
        assert (await completion(reader)).startswith(b"HTTP/1.1 200")


ADDRESSES = ("1.2.3.4", "1.2.3.4:567, 127.0.0.1", "[2001:db8::1]:80", "fe80::1%eth0")
NO_ADDRESSES = ("x" * 9000, "\x1b[31mred", "a b\tc", "unknown", "é", "::1", "")


@pytest.mark.parametrize("told", [*ADDRESSES, *NO_ADDRESSES])
async def test_whom_a_proxy_names_is_an_address_or_the_proxy(
    server: HttpServer, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="coordinator.api")
    async with connected(server) as (reader, writer):
        head = b"GET /v1/models/other HTTP/1.1\r\nhost: x\r\nx-forwarded-for: "
        writer.write(head + told.encode() + b"\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)).startswith(b"HTTP/1.1 404")
    (line,) = [record.getMessage() for record in caplog.records]
    peer = told.split(",")[0].removeprefix("[").split("]")[0].split("%")[0].removesuffix(":567")
    assert f" peer={'127.0.0.1' if told in NO_ADDRESSES else peer}" in line
    assert len(line) < 200
