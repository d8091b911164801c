"""What all parts over the C kernels share, and the checks that C cannot make."""

from dataclasses import dataclass

import torch
from torch import Tensor


class Scratch:
    """Memory for one operation at a time; grows and stays."""

    def __init__(self) -> None:
        self._size = 0
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._address = 0

    def address(self, num_bytes: int) -> int:
        if self._size < num_bytes:
            # The size last: when the memory cannot be had, the old size must still be the true one.
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8)
            self._address = self._bytes.data_ptr()
            self._size = num_bytes
        return self._address


@dataclass(frozen=True, slots=True)
class Runtime:
    """What all parts of a model share: the kernels of an instruction set, memory to work in, and threads."""

    kernels: object
    scratch: Scratch
    num_threads: int


def row_bytes(num_in: int) -> int:
    """Of a row in whatever form a product reads it: most_row_bytes of src/matrix.h."""
    return 128 * -(-num_in // 32)


def rows_of(x: Tensor, width: int) -> int:
    """How many rows of `width` float32 values the tensor is."""
    shape = x.shape
    assert shape[-1] == width, (shape, width)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    return x.numel() // width


def address_of(tensor: Tensor | None) -> int:
    """0 for none."""
    if tensor is None:
        return 0
    assert tensor.is_contiguous()
    return tensor.data_ptr()
