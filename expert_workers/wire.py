"""The messages of the data plane and what makes a reply valid. Knows no transport, no bytes and no expert.

Shapes: R rows sent, P (token, expert) pairs, N rows of a reply, D d_model.
"""

import math
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_model.errors import ReplyError

Array = NDArray[Any]

# In what a worker says to a coordinator whose epoch is over.
TAKEN_OVER = "has taken over"

# name -> (torch dtype, numpy dtype of the same bits). numpy has no bfloat16: its bits travel as uint16.
DTYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "float32": (torch.float32, np.float32),
    "bfloat16": (torch.bfloat16, np.uint16),
}
_NAMES = {torch_dtype: name for name, (torch_dtype, _) in DTYPES.items()}
# The smallest bit patterns, as signed and as unsigned integers, of which every one above is infinite or NaN.
_NON_FINITE: dict[str, tuple[type[np.generic], int, type[np.generic], int]] = {
    "float32": (np.int32, 0x7F80_0000, np.uint32, 0xFF80_0000),
    "bfloat16": (np.int16, 0x7F80, np.uint16, 0xFF80),
}
# Up to here one product over all values is the quicker test of whether they are finite.
_FEW_VALUES = 8192
_FLOAT32 = np.dtype(np.float32)


class ReplyForm(IntEnum):
    """What a call wants back: a row per pair, unweighted, or per row sent the weighted sum of its pairs."""

    PAIRS = 0
    SUM = 1


class ExpertCall(NamedTuple):
    """Rows for one worker's modules of one layer. (A tuple, as a frozen dataclass takes 1.5 µs to make.)

    `segments` are (slot, number of pairs). Pair p is row `row_index_P[p]`, or row p when there is no index:
    a hidden state is sent once even if several experts of the worker want it. `dtype` is that of the rows as
    they travel; `weights_P`, float32, are there for sums.
    """

    call_id: int
    epoch: int
    layer: int
    segments: tuple[tuple[int, int], ...]
    row_index_P: Array | None
    weights_P: Array | None
    x_RD: Array
    dtype: str
    form: ReplyForm

    @property
    def num_pairs(self) -> int:
        return sum([count for _, count in self.segments])

    @property
    def tag(self) -> int:
        """That of the weights it is meant for."""
        return weights_tag(self.segments)


class ExpertReply(NamedTuple):
    """What the experts said, in float32: N is P, in the order of the call's segments, or R for sums.

    `tag` is that of the modules which were run, by the worker's own table.
    """

    call_id: int
    epoch: int
    layer: int
    tag: int
    y_ND: Array
    compute_seconds: float


class Pong(NamedTuple):
    """The answer to a ping, which says nothing but that the other end still reads and writes."""

    call_id: int
    epoch: int


def weights_tag(segments: Iterable[tuple[int, int]]) -> int:
    """Which modules have met how many rows, in 32 bits: Σ (slot + 1) · count."""
    # Segments are few: a loop takes half of the time that a sum over a list does.
    tag = 0
    for slot, count in segments:
        tag += (slot + 1) * count
    return tag & 0xFFFF_FFFF


def dtype_name(dtype: torch.dtype) -> str:
    """The tag of a dtype that can travel. Raises ReplyError for one that cannot."""
    name = _NAMES.get(dtype)
    if name is None:
        raise ReplyError(f"dtype {dtype} cannot be sent to an expert worker; known: {', '.join(DTYPES)}")
    return name


def numpy_dtype(dtype: str) -> type[np.generic]:
    return DTYPES[dtype][1]


def tensor_to_array(tensor: Tensor) -> Array:
    """The bits of a contiguous CPU tensor as numpy, without a copy."""
    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    array: Array = bits.numpy()
    return array


def array_to_tensor(array: Array, dtype: str) -> Tensor:
    """The tensor over the same bits, without a copy. The array must be writeable: torch has no other."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def validate_reply(rank: int, call: ExpertCall, reply: ExpertReply) -> None:
    """Raises ReplyError, naming the rank and what is wrong, unless the reply is the call's result."""
    num_rows, width = call.x_RD.shape
    shape = (num_rows if call.form is ReplyForm.SUM else call.num_pairs, width)
    y_ND = reply.y_ND
    if (
        reply.call_id != call.call_id
        or reply.epoch != call.epoch
        or reply.layer != call.layer
        or reply.tag != weights_tag(call.segments)
        or y_ND.dtype != _FLOAT32
        or y_ND.shape != shape
    ):
        raise ReplyError(_difference(rank, call, reply, shape))
    if not all_finite(y_ND, "float32") and not _explained(call, y_ND):
        raise ReplyError(f"worker {rank}: reply has values that are not finite")


def all_finite(array: Array, dtype: str) -> bool:
    """Whether no value is infinite or NaN: exact, nothing allocated."""
    if array.size == 0:
        return True
    if dtype == "float32" and array.size <= _FEW_VALUES:
        values = array.ravel()
        # The sum of squares is finite only if each value is; the other way round it may just be too large.
        with np.errstate(all="ignore"):
            total = values.dot(values)
        if math.isfinite(total):
            return True
    signed, positive, unsigned, negative = _NON_FINITE[dtype]
    return bool(array.view(signed).max() < positive and array.view(unsigned).max() < negative)


def _difference(rank: int, call: ExpertCall, reply: ExpertReply, shape: tuple[int, int]) -> str:
    checks: tuple[tuple[str, object, object], ...] = (
        ("call id", reply.call_id, call.call_id),
        ("epoch", reply.epoch, call.epoch),
        ("layer", reply.layer, call.layer),
        ("weights tag", reply.tag, call.tag),
        ("element type", reply.y_ND.dtype, _FLOAT32),
        ("shape", reply.y_ND.shape, shape),
    )
    what, got, expected = next(check for check in checks if check[1] != check[2])
    return f"worker {rank}: reply has {what} {got}, expected {expected}"


def _explained(call: ExpertCall, y_ND: Array) -> bool:
    """Whether each row that is not finite came from a row that already was not: not the worker's doing."""
    is_indexed = call.form is ReplyForm.PAIRS and call.row_index_P is not None
    for place in range(len(y_ND)):
        row = call.row_index_P[place] if is_indexed and call.row_index_P is not None else place
        if not all_finite(y_ND[place], "float32") and all_finite(call.x_RD[row], call.dtype):
            return False
    return True
