"""What a port lives through: too much metadata, and bytes that are no gRPC."""

import asyncio
import logging
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.api.grpc.port import LIVENESS, MAX_METADATA_BYTES, OPTIONS, GrpcPort, is_of_the_server
from coordinator.api.grpc.tls import server_credentials
from coordinator.api.security.tls import TlsFiles
from tests.coordinator.api.certificates import Authority
from tests.coordinator.api.fakes import PATIENCE

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# What thousands of streams have left to do takes a slow or busy processor seconds.
RECOVERY_SECONDS = 20.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header for HPACK, not indexed and not compressed."""
    return b"\x00" + bytes([len(name)]) + name + b"\x7f" + _integer(len(value) - 127) + value


def _integer(value: int) -> bytes:
    data = bytearray()
    while value >= 128:
        data.append(value % 128 + 128)
        value //= 128
    return bytes([*data, value])


CALL = b"".join(
    b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)
OPENING = PREFACE + frame(SETTINGS)
ABUSE = {
    "nothing": b"",
    "zeros": bytes(100_000),
    "noise": os.urandom(100_000),
    "a web browser": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a web client's header that does not end": b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000,
    "a shell client": b"SSH-2.0-OpenSSH_9.0\r\n",
    "a TLS client": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(508),
    "SMB": b"\x00\x00\x00\x85\xffSMBr\x00\x00\x00\x00\x18\x53\xc8",
    "a database client": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "half a preface": PREFACE[:10],
    "noise after the preface": PREFACE + os.urandom(100_000),
    "a frame too large": OPENING + b"\xff\xff\xff" + bytes(6) + bytes(100_000),
    "frames of no kind": OPENING + b"".join(frame(kind, 255, 1, b"x" * 100) for kind in range(10, 256)),
    "data of no stream": OPENING + frame(DATA, 1, 5, b"x" * 1000),
    "settings without end": OPENING + frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x64" * 100) * 2000,
    "pings without end": OPENING + frame(PING, 0, 0, bytes(8)) * 20_000,
    "rapid reset": OPENING
    + b"".join(
        frame(HEADERS, 4, stream, CALL) + frame(RESET, 0, stream, bytes(4)) for stream in range(1, 20_001, 2)
    ),
    "headers that never end": OPENING
    + frame(HEADERS, 0, 1, CALL)
    + frame(CONTINUATION, 0, 1, literal(b"x-a", b"x" * 8000)) * 2000,
    "empty continuations": OPENING + frame(HEADERS, 0, 1, CALL) + frame(CONTINUATION, 0, 1) * 100_000,
    "a header bomb": OPENING
    # One long header put into the table, then named 16000 times at one byte each.
    + frame(HEADERS, 0, 1, CALL + b"\x40\x01x\x7f" + _integer(3900 - 127) + b"x" * 3900)
    + frame(CONTINUATION, 4, 1, b"\xbe" * 16_000) * 10,
    "a message longer than allowed": OPENING
    + frame(HEADERS, 4, 1, CALL)
    + frame(DATA, 0, 1, b"\x00\xff\xff\xff\xff" + bytes(1000)),
    "a message that is none": OPENING
    + frame(HEADERS, 4, 1, CALL)
    + frame(DATA, 1, 1, b"\x00\x00\x00\x00\x03\xff\xff\xff"),
}


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[GrpcPort]:
    port = GrpcPort("127.0.0.1:0", {}, **options)
    port.bind()
    await port.start()
    try:
        yield port
    finally:
        await port.close()


async def check(channel: grpc.aio.Channel, name: str = LIVENESS, **options: Any) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    question = health_pb2.HealthCheckRequest(service=name)
    return int((await stub.Check(question, timeout=PATIENCE, **options)).status)


async def check_soon(channel: grpc.aio.Channel) -> int:
    """grpc turns new calls away while thousands wait; a moment after an attack there are none."""
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            try:
                return await check(channel)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    raise


async def send(address: str, data: bytes) -> None:
    """Says it all, as far as anybody listens, and waits for whatever comes back."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with suppress(OSError):
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        while await reader.read(1 << 16):
            pass
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("abuse", ABUSE)
async def test_bytes_that_are_no_grpc_leave_it_alive(abuse: str, caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as port, grpc.aio.insecure_channel(port.address) as channel:
        assert await check(channel) == SERVING
        before = resident_bytes()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(send(port.address, ABUSE[abuse]) for _ in range(3)))
        assert resident_bytes() - before < 100 << 20
        # The connection of before, and a new one.
        assert await check_soon(channel) == SERVING
        async with grpc.aio.insecure_channel(port.address) as another:
            assert await check_soon(another) == SERVING
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "method",
    ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"],
)
async def test_a_message_that_is_none_is_told_to_its_sender_alone(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening() as port, grpc.aio.insecure_channel(port.address) as channel:
        kind = "unary_unary" if method.endswith("Check") else "stream_stream"
        data = b"\xff\xff\xff"
        call = getattr(channel, kind)(method)(
            iter([data]) if kind == "stream_stream" else data, timeout=PATIENCE
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await (call.read() if kind == "stream_stream" else call)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("message", "error", "is_kept"),
    [
        ("Failed sending error status from server", RuntimeError(), False),
        ("Exception in a handler", DecodeError(), False),
        ("Exception in a handler", RuntimeError(), True),
    ],
)
def test_grpc_s_own_log_has_faults_of_the_server_alone(message: str, error: Exception, is_kept: bool) -> None:
    record = logging.LogRecord(
        "grpc", logging.ERROR, "x.py", 1, message, None, (type(error), error, error.__traceback__)
    )
    assert is_of_the_server(record) == is_kept


@pytest.mark.parametrize("abuse", ["nothing", "zeros", "noise", "a web browser", "rapid reset"])
async def test_bytes_that_are_no_tls_leave_it_alive(abuse: str, tmp_path: Path) -> None:
    authority = Authority()
    credentials = server_credentials(TlsFiles(authority.write(tmp_path)))
    trusting = grpc.ssl_channel_credentials(authority.pem)
    async with listening(credentials=credentials) as port:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(send(port.address, ABUSE[abuse]) for _ in range(10)))
        async with grpc.aio.secure_channel(port.address, trusting) as channel:
            assert await check(channel) == SERVING


@pytest.mark.parametrize("num_headers", [1, 20])
@pytest.mark.parametrize(
    ("size", "fits"), [(MAX_METADATA_BYTES - 2000, True), (MAX_METADATA_BYTES, False), (1 << 20, False)]
)
async def test_metadata_up_to_a_size(size: int, fits: bool, num_headers: int) -> None:
    metadata = tuple((f"x-{number}", "x" * (size // num_headers)) for number in range(num_headers))
    async with listening() as port, grpc.aio.insecure_channel(port.address) as channel:
        if fits:
            assert await check(channel, metadata=metadata) == SERVING
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(channel, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "metadata size" in (caught.value.details() or "")
        # Whoever sent it may go on.
        assert await check(channel) == SERVING


async def test_readiness_can_change_until_it_is_withdrawn() -> None:
    async with listening() as port, grpc.aio.insecure_channel(port.address) as channel:
        for serving in (False, True, False, True):
            await port.set_serving(serving)
            assert await check(channel, "") == (SERVING if serving else NOT_SERVING)
        await port.withdraw()
        await port.set_serving(True)
        assert await check(channel, "") == NOT_SERVING
        assert await check(channel) == SERVING


async def test_the_grace_of_a_withdrawal_ends_with_the_port() -> None:
    async with listening() as port, grpc.aio.insecure_channel(port.address) as channel:
        grace = asyncio.create_task(port.withdraw(3600))
        stub: Any = health_pb2_grpc.HealthStub(channel)
        async for response in stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE):
            if response.status == NOT_SERVING:
                break
        assert not grace.done()
        await port.close()
        await asyncio.wait_for(grace, PATIENCE)


async def test_without_reflection_there_is_none() -> None:
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    for with_reflection in (True, False):
        async with (
            listening(with_reflection=with_reflection) as port,
            grpc.aio.insecure_channel(port.address) as channel,
        ):
            ask: Any = channel.stream_stream(method)
            call = ask(iter([b""]))
            if with_reflection:
                assert await call.read()
                continue
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_interceptors_see_a_call_in_their_order() -> None:
    seen: list[str] = []

    class Named(grpc.aio.ServerInterceptor):
        def __init__(self, name: str) -> None:
            self._name = name

        async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
            seen.append(self._name)
            return await continuation(details)

    async with (
        listening(interceptors=[Named("auth"), Named("metrics")]) as port,
        grpc.aio.insecure_channel(port.address) as channel,
    ):
        await check(channel)
    assert seen == ["auth", "metrics"]


QUESTION = b"\x00\x00\x00\x00\x0a\x0a\x08liveness"


async def test_a_burst_that_comes_while_the_loop_is_busy_is_answered_whole() -> None:
    """More calls than grpc keeps by itself for a loop that does not look at them."""
    num_calls = 3500
    async with listening() as port:
        told = await asyncio.to_thread(_burst, port.address, num_calls, asyncio.get_running_loop())
    assert told == {HEADERS: 2 * num_calls}


def _burst(address: str, num_calls: int, loop: asyncio.AbstractEventLoop) -> dict[int, int]:
    """How many frames of a kind answer so many calls. The loop is held up until grpc has taken all of them:
    it answers a ping after the frames before it, on threads of its own."""
    host, _, port = address.rpartition(":")
    held, all_there = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        all_there.wait(PATIENCE)

    loop.call_soon_threadsafe(hold)
    assert held.wait(PATIENCE)
    told = {HEADERS: 0}
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        numbers = range(1, 2 * num_calls, 2)
        calls = (frame(HEADERS, 4, number, CALL) + frame(DATA, 1, number, QUESTION) for number in numbers)
        connection.sendall(OPENING + b"".join(calls) + frame(PING, 0, 0, b"all sent"))
        stream = connection.makefile("rb")
        while told[HEADERS] + told.get(RESET, 0) < 2 * num_calls:
            header = stream.read(9)
            kind, payload = header[3], stream.read(int.from_bytes(header[:3]))
            if kind == PING and payload == b"all sent":
                all_there.set()
            if kind in (HEADERS, RESET):
                told[kind] = told.get(kind, 0) + 1
    return told


def test_silent_connections_are_not_kept() -> None:
    assert dict(OPTIONS)["grpc.server_handshake_timeout_ms"] == 10_000
