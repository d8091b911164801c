"""Products with blocks in torch's own operations: the same additions in the same order, so the same bits.

Shapes: R rows, I inputs, O outputs, B blocks, k inputs of a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.kernels.quantise import BLOCK, quantise_blocks
from moe_model.names import WeightForm


def row_blocks(x_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Integers, as float32, and scales of finite rows: the largest of a block becomes 127."""
    x_RBk = F.pad(x_RI, (0, -x_RI.shape[1] % BLOCK)).view(len(x_RI), -1, BLOCK)
    largest_RB = x_RBk.abs().amax(dim=2)
    is_something_RB = largest_RB >= 1e-30
    # A number over a tensor would be its reciprocal, rounded, times the number.
    rate_RB = torch.where(is_something_RB, torch.full_like(largest_RB, 127) / largest_RB, 0.0)
    return (x_RBk * rate_RB.unsqueeze(2)).round(), torch.where(is_something_RB, largest_RB / 127, 0.0)


def rounded_rows(x_RI: Tensor) -> Tensor:
    """The rows that a product with blocks sees, in float64."""
    values_RBk, scale_RB = row_blocks(x_RI)
    return (values_RBk.double() * scale_RB.double().unsqueeze(2)).flatten(1)[:, : x_RI.shape[1]]


def block_product(x_RI: Tensor, weight_OI: Tensor, form: WeightForm) -> Tensor:
    """x Wᵀ [R, O]."""
    return add_blocks(row_blocks(x_RI), quantise_blocks(weight_OI, form))


def add_blocks(rows: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> Tensor:
    """Of integers and scales of both."""
    (values_RBk, scale_RB), (weights_OBk, scale_OB) = rows, weights
    sums_ROB = torch.einsum("rbk,obk->rob", values_RBk.double(), weights_OBk.double()).float()
    total_RO = torch.zeros(sums_ROB.shape[:2])
    for b in range(sums_ROB.shape[2]):
        both_RO = scale_OB[:, b].float() * scale_RB[:, b : b + 1]
        total_RO = total_RO + sums_ROB[:, :, b] * both_RO
    return total_RO
