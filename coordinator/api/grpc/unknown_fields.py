"""Fields of a gRPC request that this server does not know, by number: counted, logged, refused if asked for.

protobuf keeps them without a word, also those of a newer client that would change the answer.
"""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

logger = logging.getLogger(__name__)

MAX_NAMES = 16
# A name costs thousands of times as much as a byte on the wire.
MAX_NAMED_BYTES = 4 << 10
MAX_MESSAGES = 2048
LOG_SECONDS = 1.0

# (service, method)
Count = Callable[[str, str], None]


class UnknownFields:
    """What becomes of them. `strict` refuses; `count` is told of each request that has some."""

    def __init__(self, count: Count = lambda service, method: None, *, strict: bool = False) -> None:
        self.is_strict = strict
        self._count = count
        self._quiet_until = 0.0
        self._num_quiet = 0

    def found(self, service: str, method: str, names: tuple[str, ...]) -> None:
        """One line for a request, and at most one in LOG_SECONDS."""
        self._count(service, method)
        now = time.monotonic()
        if now < self._quiet_until:
            self._num_quiet += 1
            return
        more = f" ({self._num_quiet} more such requests)" if self._num_quiet else ""
        logger.warning("%s: unknown fields %s%s", method, ", ".join(names), more)
        self._quiet_until, self._num_quiet = now + LOG_SECONDS, 0


def take_unknown(message: Message, data: bytes) -> tuple[str, ...]:
    """Takes them out of a message, which was parsed from `data`; their numbers, below the names of fields."""
    size = message.ByteSize()
    message.DiscardUnknownFields()
    num_bytes = size - message.ByteSize()
    if num_bytes == 0:
        return ()
    if num_bytes > MAX_NAMED_BYTES:
        return (f"of {num_bytes} bytes",)
    budget = iter(range(MAX_MESSAGES))
    names = dict.fromkeys(_names(type(message).FromString(data), "", budget))
    return tuple(islice(names, MAX_NAMES)) or (f"of {num_bytes} bytes",)


def _names(message: Message, path: str, budget: Iterator[int]) -> Iterator[str]:
    if next(budget, None) is None:
        return
    unknown: Any = UnknownFieldSet(message)
    for field in unknown:
        yield f"{path}{field.field_number}"
    for known, value in message.ListFields():
        kind = known.message_type
        if kind is None or kind.GetOptions().map_entry:
            continue
        for each in (value,) if isinstance(value, Message) else value:
            yield from _names(each, f"{path}{known.name}.", budget)
