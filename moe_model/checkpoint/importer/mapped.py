"""Copies out of a mapped file, which another process may cut short meanwhile.

A process that touches a mapped page that its file no longer has is ended by SIGBUS. The kernel copies
instead, into a pipe, and says EFAULT.
"""

import errno
import os

import torch
from torch import Tensor

# A pipe takes so much at once without waiting for its reader.
_CHUNK = 1 << 16


def copy_mapped(tensor: Tensor) -> Tensor | None:
    """The same tensor in memory of its own; None when its file has become too short for it."""
    # What it lies in, which has gaps for a tensor that is a view of another.
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((span if tensor.numel() else 0,), (1,))
    copy = torch.empty_like(flat)
    try:
        _copy_bytes(_bytes_of(flat), _bytes_of(copy))
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return None
    return copy.as_strided(tensor.shape, tensor.stride())


def _bytes_of(flat: Tensor) -> memoryview:
    return flat.view(torch.uint8).numpy().data


def _copy_bytes(source: memoryview, target: memoryview) -> None:
    """Raises OSError with EFAULT where the source is not there."""
    receiving, sending = os.pipe()
    try:
        done = 0
        while done < len(source):
            sent = done + os.write(sending, source[done : done + _CHUNK])
            while done < sent:
                done += os.readv(receiving, [target[done:sent]])
    finally:
        os.close(receiving)
        os.close(sending)
