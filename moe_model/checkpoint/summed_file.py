"""A safetensors file of which the SHA-256 and the tensors are known: read once, from beginning to end.

What was summed is what is used, and no more of it is in memory than the tensors.
"""

import hashlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from moe_model.checkpoint.finite import require_finite
from moe_model.checkpoint.safetensors_file import header_length, tensor_spans
from moe_model.errors import CheckpointError
from moe_model.files.piece_file import PieceFile


def read_summed(
    file: PieceFile,
    sha256: str,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    float32: AbstractSet[str] = frozenset(),
) -> dict[str, Tensor]:
    """The tensors as they are stored, `float32` as that and the others as `dtype`, all values finite.

    Raises CheckpointError: for another sum first, then naming the tensor.
    """
    where = str(file.path)
    start = file.read(0, min(8, file.size))
    try:
        start += file.read(8, header_length(start, file.size, where))
        spans = tensor_spans(start, file.size, shapes, dtype, where, float32)
    except CheckpointError:
        require_sum(file, sha256)
        raise
    found, tensors = hashlib.sha256(start), dict[str, Tensor]()
    for name, (begin, end) in spans.items():
        # Aligned as torch aligns: kernels may round differently with the alignment of their operands.
        data = torch.empty(end - begin, dtype=torch.uint8)
        view = data.numpy().data
        file.read_into(begin, view)
        found.update(view)
        tensors[name] = data.view(torch.float32 if name in float32 else dtype).view(shapes[name])
    _require_same(file, found.hexdigest(), sha256)
    for name, tensor in tensors.items():
        require_finite(tensor, name, where)
    return {name: tensors[name] for name in shapes}


def require_sum(file: PieceFile, sha256: str) -> None:
    """Reads all of it. Raises CheckpointError."""
    found = hashlib.sha256()
    for chunk in file.chunks():
        found.update(chunk)
    _require_same(file, found.hexdigest(), sha256)


def _require_same(file: PieceFile, found: str, expected: str) -> None:
    if found != expected:
        file.forget()
        raise CheckpointError(f"{file.path}: SHA-256 is not the manifest's: the file has changed")


def converted(
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    device: str | torch.device,
    where: str,
    float32: AbstractSet[str] = frozenset(),
) -> dict[str, Tensor]:
    """As another dtype, one after the other: `tensors` is empty afterwards.

    Raises CheckpointError naming the tensor that has values beyond the range of `dtype`.
    """
    found: dict[str, Tensor] = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        found[name] = own = tensor.to(device, torch.float32 if name in float32 else dtype)
        if own.dtype != tensor.dtype:
            require_finite(own, name, where)
    return found
