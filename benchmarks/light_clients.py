"""LightClients: server streams of gRPC over plain HTTP/2, whose messages are only noted as they come.

Clients share the cores with the server that they measure, and gRPC's own client takes as long for a message
as the server does. These know short requests, and of HTTP/2 what our server sends; all else fails.
"""

import asyncio
import time
from dataclasses import dataclass, field

import grpc

STREAM = "/expertmesh.v1.GenerationService/GenerateStream"
CONNECT_TIMEOUT = 60.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_TABLE_SIZE, _WINDOW_SIZE = 1, 4
_BUFFER_BYTES = 64 << 10
_MAX_WINDOW = (1 << 31) - 1
# What a peer takes before it has said more.
_FIRST_WINDOW, _MAX_FRAME = 65_535, 16_384
_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}


@dataclass(slots=True)
class Trace:
    """A request that was due at `due`; its messages as bytes, each with its time of `perf_counter`."""

    due: float
    code: str = "OK"
    messages: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0


class LightClients:
    """Each has a connection of its own, sends bytes and reads bytes."""

    def __init__(self, address: str, num_clients: int, method: str = STREAM) -> None:
        self._address = address
        self._num_clients = num_clients
        self._headers = _request_headers(address, method)
        self._connections: list[_Connection] = []

    async def connect(self) -> None:
        host, _, port = self._address.rpartition(":")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            for _ in range(self._num_clients):
                _, connection = await loop.create_connection(_Connection, host.strip("[]"), int(port))
                self._connections.append(connection)
            await asyncio.gather(*(connection.is_open for connection in self._connections))

    async def close(self) -> None:
        for connection in self._connections:
            connection.leave()
        await asyncio.gather(*(connection.is_closed for connection in self._connections))

    async def send(self, client: int, message: bytes, due: float | None = None) -> Trace:
        """Reads to the end, never raises for a status. Without `due` it is due now."""
        trace = Trace(time.perf_counter() if due is None else due)
        await self.follow(client, message, trace)
        return trace

    async def follow(self, client: int, message: bytes, trace: Trace) -> None:
        """As `send`, into a trace that others may look at meanwhile."""
        stream = self._connections[client % self._num_clients].begin(self._headers, message, trace)
        trace.code = await stream.code
        trace.ended = time.perf_counter()


class _Stream:
    """One request whose messages go into its trace."""

    def __init__(self, trace: Trace, code: "asyncio.Future[str]") -> None:
        self.code = code
        self._trace = trace
        self._unread = b""

    def take(self, now: float, data: bytes) -> None:
        """Cut where gRPC's prefixes say; a message came when its last byte did."""
        data = self._unread + data
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5], "big")):
            self._trace.messages.append((now, data[5:end]))
            data = data[end:]
        self._unread = data


class _Connection(asyncio.BufferedProtocol):
    """Any number of streams, by their numbers. Reads into one buffer, where asyncio would make one of 256 KiB
    for each piece."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.is_open: asyncio.Future[None] = loop.create_future()
        self.is_closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._streams: dict[int, _Stream] = {}
        self._next = 1
        self._rest = b""
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def begin(self, headers: bytes, message: bytes, trace: Trace) -> _Stream:
        """Raises ValueError for a message that may not fit what a server takes at once."""
        framed = bytes(1) + len(message).to_bytes(4, "big") + message
        if len(framed) > _MAX_FRAME:
            raise ValueError(f"a request of {len(message)} bytes is too long for a light client")
        number, self._next = self._next, self._next + 2
        stream = self._streams[number] = _Stream(trace, self._loop.create_future())
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, number, headers) + _frame(_DATA, _END_STREAM, number, framed)
        )
        return stream

    def leave(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Without a table of its headers, and with as much as it likes to send.
        settings = _setting(_TABLE_SIZE, 0) + _setting(_WINDOW_SIZE, _MAX_WINDOW)
        window = (_MAX_WINDOW - _FIRST_WINDOW).to_bytes(4, "big")
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed.set_result(None)
        if not self.is_open.done():
            self.is_open.set_exception(ConnectionError("the server closed the connection"))
        for number in tuple(self._streams):
            self._end(number, "UNAVAILABLE")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        now = time.perf_counter()
        data = self._rest + self._buffer[:nbytes]
        start, end = 0, len(data)
        while end - start >= 9:
            size = data[start] << 16 | data[start + 1] << 8 | data[start + 2]
            stop = start + 9 + size
            if stop > end:
                break
            number = int.from_bytes(data[start + 5 : start + 9], "big") & _MAX_WINDOW
            self._take(data[start + 3], data[start + 4], number, data[start + 9 : stop], now)
            start = stop
        self._rest = data[start:]

    def _take(self, kind: int, flags: int, number: int, payload: bytes, now: float) -> None:
        stream = self._streams.get(number)
        if kind == _DATA:
            if stream is not None:
                stream.take(now, payload)
        elif kind == _HEADERS:
            if flags & _END_STREAM:
                self._end(number, _code(payload))
        elif kind == _RST_STREAM:
            self._end(number, "RESET")
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
            if not self.is_open.done():
                self.is_open.set_result(None)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))

    def _end(self, number: int, code: str) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None and not stream.code.done():
            stream.code.set_result(code)


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload


def _setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def _request_headers(address: str, method: str) -> bytes:
    """In HPACK: each a literal that no table keeps."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())


def _text(text: str) -> bytes:
    assert len(text) < 127, "a header of a light client is short"
    return bytes((len(text),)) + text.encode("ascii")


def _code(headers: bytes) -> str:
    """The status in a block of headers that a server may write without a table. Raises ValueError."""
    _, found, rest = headers.rpartition(_text("grpc-status"))
    code = rest[1 : 1 + rest[0]].decode("latin-1") if found and rest else ""
    if code not in _CODES:
        raise ValueError("trailers that a light client cannot read")
    return _CODES[code]
