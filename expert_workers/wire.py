"""The messages of the data plane and what makes a reply valid. Knows no transport, no bytes and no expert.

Shapes: R rows sent, P (token, expert) pairs, D d_model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_model.errors import ReplyError

Array = NDArray[Any]

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


@dataclass(frozen=True, slots=True, eq=False)
class ExpertCall:
    """Rows for one worker's experts of one layer.

    `segments` are (expert, number of pairs). Pair p is row `row_index_P[p]`, or row p when there is no index:
    a hidden state is sent once even if several experts of the worker want it.
    """

    call_id: int
    epoch: int
    layer: int
    segments: tuple[tuple[int, int], ...]
    row_index_P: Array | None
    x_RD: Array
    dtype: str

    @property
    def num_pairs(self) -> int:
        return sum(count for _, count in self.segments)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertReply:
    """What the experts said, one row per pair, in the order of the call's segments."""

    call_id: int
    epoch: int
    y_PD: Array
    dtype: str
    compute_seconds: float


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
    shape = (call.num_pairs, call.x_RD.shape[1])
    checks = (
        ("call id", reply.call_id, call.call_id),
        ("epoch", reply.epoch, call.epoch),
        ("dtype", reply.dtype, call.dtype),
        ("element type", reply.y_PD.dtype, np.dtype(numpy_dtype(call.dtype))),
        ("shape", reply.y_PD.shape, shape),
    )
    for what, got, expected in checks:
        if got != expected:
            raise ReplyError(f"worker {rank}: reply has {what} {got}, expected {expected}")
    if not all_finite(reply.y_PD, reply.dtype) and not _explained(call, reply):
        raise ReplyError(f"worker {rank}: reply has values that are not finite")


def all_finite(array: Array, dtype: str) -> bool:
    """Whether no value is infinite or NaN. Two integer maxima over the bits: exact, nothing allocated."""
    if array.size == 0:
        return True
    signed, positive, unsigned, negative = _NON_FINITE[dtype]
    return bool(array.view(signed).max() < positive and array.view(unsigned).max() < negative)


def _explained(call: ExpertCall, reply: ExpertReply) -> bool:
    """Whether each row that is not finite came from a row that already was not: not the worker's doing."""
    for pair in range(call.num_pairs):
        row = pair if call.row_index_P is None else call.row_index_P[pair]
        if not all_finite(reply.y_PD[pair], call.dtype) and all_finite(call.x_RD[row], call.dtype):
            return False
    return True
