"""Messages to bytes and back: MessagePack, each message with its name before it.

What an engine in this process is told is never encoded.
"""

import sys
from typing import Any

import msgspec
import numpy as np

from coordinator.engine.messages.commands import (
    AddExpert,
    Changed,
    CheckIntegrity,
    Done,
    Ended,
    EndRequests,
    ExpertList,
    ListExperts,
    ReadWorkers,
    RemoveExpert,
    ReplaceExpert,
    ScaleWorkers,
)
from coordinator.engine.messages.errors import MessageError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.metrics import MetricsSnapshot, ReadMetrics
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.process import Answer, Beat, Call, Hello, MissingExperts, StepOutputs
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.request import Abort, Request
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from expert_workers.status import Scaled
from moe_model.errors import ExpertMeshError

REQUESTS = (Request, Abort)
COMMANDS = (
    *(
        CheckIntegrity,
        ScaleWorkers,
        ReadWorkers,
        ListExperts,
        ReplaceExpert,
        AddExpert,
        RemoveExpert,
        ReadMetrics,
        EndRequests,
    ),
)
RESULTS = (Done, Scaled, ExpertList, Changed, MetricsSnapshot, Ended)
NEWS = (Output, Failure, EngineStats, ModelStatus, WorkersStatus, ModelFacts, TracedStep)
# What carries the others between two processes.
CARRIERS = (Hello, Call, Answer, StepOutputs, MissingExperts, Beat)
# All that crosses the seam, in either direction.
MESSAGES: tuple[type, ...] = (*REQUESTS, *COMMANDS, *RESULTS, *NEWS, *CARRIERS)

_KINDS = frozenset(MESSAGES)
# Of the arrays that messages have: expert ids.
_DTYPES = ("u1", "u2")


def encode(message: object) -> bytes:
    """The bytes of one of MESSAGES. Raises MessageError for a number that has no place in them."""
    assert type(message) in _KINDS, f"{type(message).__name__} is no message"
    try:
        return _ENCODER.encode((type(message).__name__, message))
    except OverflowError as error:
        raise MessageError(f"{type(message).__name__} cannot be told: {error}") from None


def decode(data: bytes | bytearray | memoryview) -> object:
    """Equals what was encoded. Raises MessageError for bytes that are not exactly one message."""
    try:
        name, body = _ENVELOPE.decode(data)
        return _DECODERS[name].decode(body)
    except (msgspec.MsgspecError, KeyError, ValueError, RecursionError, ExpertMeshError) as error:
        raise MessageError(f"bytes that are no message: {error}"[:200]) from None


def _encode_array(value: object) -> tuple[str, tuple[int, ...], bytes]:
    """Numbers as they lie in memory of a little-endian machine."""
    if not isinstance(value, np.ndarray):
        raise NotImplementedError(f"{type(value).__name__} is no part of a message")
    kind = value.dtype.str[1:]
    assert kind in _DTYPES, f"{kind} is no type of a message's arrays"
    is_swapped = sys.byteorder != "little" and value.dtype.itemsize > 1
    return kind, value.shape, (value.byteswap() if is_swapped else value).tobytes()


def _decode_array(kind: type, value: Any) -> np.ndarray:
    """Raises ValueError, which msgspec turns into an error of its own."""
    if kind is not np.ndarray:
        raise NotImplementedError(f"{kind.__name__} is no part of a message")
    dtype, shape, data = msgspec.convert(value, tuple[str, tuple[int, ...], bytes])
    if dtype not in _DTYPES or min(shape, default=0) < 0:
        raise ValueError(f"{dtype} {shape} is no array of a message")
    return np.frombuffer(data, f"<{dtype}").reshape(shape).astype(dtype, copy=False)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_ENVELOPE = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_DECODERS: dict[str, msgspec.msgpack.Decoder[object]] = {
    kind.__name__: msgspec.msgpack.Decoder(kind, dec_hook=_decode_array) for kind in MESSAGES
}
