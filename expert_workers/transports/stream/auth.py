"""The handshake of a stream: both ends prove that they have the worker's session key, before any frame.

Server: HELLO with a nonce. Client: PROOF, its own nonce and an HMAC over both. Server: WELCOME, its HMAC over
both, or why not. Sizes are fixed, nothing is parsed but these; every wait ends at one deadline.
"""

import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass, field
from enum import IntEnum

from expert_workers.transports.frame import VERSION
from moe_model.errors import ReplyError

KEY_BYTES = 32
_NONCE_BYTES = 32
_MAGIC = b"EMHS"
# magic, version, status; a nonce or a proof
_MESSAGE = struct.Struct("<4sBB2x32s")
# magic, version; the client's nonce and its proof
_PROOF = struct.Struct("<4sB3x32s32s")


class _Status(IntEnum):
    OK = 0
    VERSION = 1
    KEY = 2
    BUSY = 3


_REFUSALS = {
    _Status.VERSION: f"does not speak version {VERSION} of the data plane",
    _Status.KEY: "refused the session key",
    _Status.BUSY: "has too many connections",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a worker's process listens, and the key that connections to it prove; handed out through Ray.

    `unix_name` is an abstract socket, which the kernel forgets with the process; it can be reached from the
    same network namespace only, of which the machine's `boot_id` is a hint.
    """

    pid: int
    boot_id: str
    unix_name: str
    host: str
    port: int
    is_tls: bool
    key: bytes = field(repr=False)


def boot_id() -> str:
    """The same for all processes of one machine, until it starts again."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def prove_to_server(connection: socket.socket, key: bytes, deadline: float) -> None:
    """The client's side. Raises ReplyError when the other end is no worker with this key, OSError."""
    magic, version, status, theirs = _MESSAGE.unpack(_receive(connection, _MESSAGE.size, deadline))
    _check(magic, version, status)
    ours = secrets.token_bytes(_NONCE_BYTES)
    proof = _proof(key, b"client", theirs, ours)
    _send(connection, _PROOF.pack(_MAGIC, VERSION, ours, proof), deadline)
    magic, version, status, proof = _MESSAGE.unpack(_receive(connection, _MESSAGE.size, deadline))
    _check(magic, version, status)
    if not hmac.compare_digest(proof, _proof(key, b"server", theirs, ours)):
        raise ReplyError("does not know its own session key: not the worker that Ray named")


def prove_to_client(connection: socket.socket, key: bytes, deadline: float) -> None:
    """The server's side. Raises ReplyError when the peer does not know the key, OSError."""
    ours = secrets.token_bytes(_NONCE_BYTES)
    _send(connection, _MESSAGE.pack(_MAGIC, VERSION, _Status.OK, ours), deadline)
    magic, version, theirs, proof = _PROOF.unpack(_receive(connection, _PROOF.size, deadline))
    if magic != _MAGIC:
        raise ReplyError("is no peer of the data plane")
    status = _Status.OK
    if version != VERSION:
        status = _Status.VERSION
    elif not hmac.compare_digest(proof, _proof(key, b"client", ours, theirs)):
        status = _Status.KEY
    answer = bytes(_NONCE_BYTES) if status else _proof(key, b"server", ours, theirs)
    _send(connection, _MESSAGE.pack(_MAGIC, VERSION, status, answer), deadline)
    if status:
        reason = {_Status.VERSION: f"speaks version {version}", _Status.KEY: "has not the session key"}
        raise ReplyError(reason[status])


def refuse_busy(connection: socket.socket) -> None:
    """Instead of a HELLO, to one too many; what cannot be sent at once is not."""
    connection.setblocking(False)
    connection.send(_MESSAGE.pack(_MAGIC, VERSION, _Status.BUSY, bytes(_NONCE_BYTES)))


def _check(magic: bytes, version: int, status: int) -> None:
    if magic != _MAGIC:
        raise ReplyError("is no expert worker's data plane")
    if version != VERSION:
        raise ReplyError(f"speaks version {version} of the data plane, expected {VERSION}")
    if status != _Status.OK:
        raise ReplyError(_REFUSALS.get(_Status(status), "refused") if status <= max(_Status) else "refused")


def _proof(key: bytes, role: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """`role` keeps a proof from being sent back to the end that made it."""
    return hmac.digest(key, role + bytes((VERSION,)) + server_nonce + client_nonce, "sha256")


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    connection.settimeout(_remaining(deadline))
    connection.sendall(data)


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        connection.settimeout(_remaining(deadline))
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionResetError("closed during the handshake")
        data += part
    return data


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("no handshake in time")
    return remaining
