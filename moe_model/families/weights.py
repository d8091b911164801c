"""What families share in naming, counting and drawing their weights."""

from collections.abc import Callable
from math import prod, sqrt

import torch
from torch import Tensor

from moe_model.families.base import Shapes


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def num_values(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


def xavier_bound(shape: tuple[int, ...]) -> float:
    return sqrt(6 / (shape[0] + shape[1]))


def kaiming_bound(shape: tuple[int, ...]) -> float:
    return sqrt(6 / shape[1])


def draw(
    shapes: Shapes, generator: torch.Generator, bound: Callable[[tuple[int, ...]], float]
) -> dict[str, Tensor]:
    """Float32 matrices uniform within the bound of their shape, norm scales 1, biases 0."""
    return {name: _draw_tensor(name, shape, generator, bound) for name, shape in shapes.items()}


def _draw_tensor(
    name: str, shape: tuple[int, ...], generator: torch.Generator, bound: Callable[[tuple[int, ...]], float]
) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return (2 * torch.rand(shape, generator=generator) - 1) * bound(shape)
