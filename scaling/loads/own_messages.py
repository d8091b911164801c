"""What our client and the process that it sends from say to each other: files of msgpack, and two lines."""

from msgspec import Struct

# The line before the first request: it and the time, of time.monotonic(), at which the load begins.
BEGIN = "BEGIN"
# The largest message of gRPC that a light client can send: its one frame, less gRPC's prefix.
MOST_LIGHT_BYTES = 16_384 - 5


class Order(Struct, frozen=True):
    """`messages` are requests of GenerateStream as bytes. `due_s`, of each, since the load began; empty: so
    many `clients` send them, each its next one when the one before has ended."""

    address: str
    messages: tuple[bytes, ...]
    due_s: tuple[float, ...]
    clients: int
    seconds: float


class Answer(Struct, frozen=True):
    """What came of one request, seconds since the load began. `messages`: each with when it came."""

    due_s: float
    sent_s: float
    end_s: float
    code: str
    messages: tuple[tuple[float, bytes], ...]


class Report(Struct, frozen=True):
    """`cpu_s`: processor seconds of the process while the load ran."""

    began_s: float
    cpu_s: float
    answers: tuple[Answer, ...]
