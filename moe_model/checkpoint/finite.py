"""The one check that weights are numbers. Every reader of tensors from a file asks it first."""

import math

from torch import Tensor

from moe_model.errors import CheckpointError


def require_finite(tensor: Tensor, name: str, where: str) -> None:
    """Raises CheckpointError naming the tensor if a value of it is NaN or infinite. Allocates nothing."""
    # A sum is finite only if all values are, and takes a fiftieth of the time of finding the ends; one that
    # is not may be too large. NaN goes through to both ends. An empty tensor has no ends.
    if not tensor.numel() or math.isfinite(tensor.sum().item()):
        return
    ends = tensor.aminmax()
    if not all(math.isfinite(end.item()) for end in ends):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{where}: tensor {name!r} has values that are not finite as {dtype}")
