"""Matrices in the bytes of a checkpoint that stores them in 4 or 8 bits.

Among an expert's tensors each is two: its bytes by its name, its scales by that and `SCALE`. Both have a row
for each output. Shapes: O outputs, I inputs, B blocks of an output, b bytes of one, k inputs of a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.names import StoredForm

SCALE = ".scale"
# Inputs of a block.
BLOCK_INPUTS: Mapping[StoredForm, int] = {"mxfp4": 32, "fp8": 128}


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """mxfp4: bytes_Ob [O, I / 2] of two codes of e2m1 each, the first in the low half, and scale_OB of uint8,
    e8m0. fp8: bytes_Ob [O, I] of e4m3, and scale_OB of float32, the last perhaps of fewer inputs."""

    form: StoredForm
    bytes_Ob: Tensor
    scale_OB: Tensor

    def __post_init__(self) -> None:
        (num_out, num_in), block = self.shape, BLOCK_INPUTS[self.form]
        assert self.bytes_Ob.dtype == torch.uint8
        assert self.scale_OB.dtype == (torch.uint8 if self.form == "mxfp4" else torch.float32)
        assert self.scale_OB.shape == (num_out, -(-num_in // block))
        assert self.form == "fp8" or num_in % block == 0

    @property
    def shape(self) -> tuple[int, int]:
        """O, I."""
        num_out, width = self.bytes_Ob.shape
        return num_out, 2 * width if self.form == "mxfp4" else width

    def rows(self, some: slice) -> "StoredMatrix":
        """Of these outputs."""
        return StoredMatrix(self.form, self.bytes_Ob[some], self.scale_OB[some])

    def codes(self) -> Tensor:
        """Of mxfp4: uint8 [O, B, k], 0 to 15."""
        assert self.form == "mxfp4"
        pairs_Ob2 = torch.stack([self.bytes_Ob & 15, self.bytes_Ob >> 4], dim=2)
        return pairs_Ob2.view(*self.scale_OB.shape, BLOCK_INPUTS["mxfp4"])


def stored_matrix(tensors: Mapping[str, Tensor], name: str, form: StoredForm) -> StoredMatrix:
    """One of an expert's matrices."""
    return StoredMatrix(form, tensors[name], tensors[name + SCALE])


def random_matrix(form: StoredForm, num_out: int, num_in: int, generator: torch.Generator) -> StoredMatrix:
    """Of any bytes that are numbers, about as large as 1."""

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).to(torch.uint8)

    num_blocks = -(-num_in // BLOCK_INPUTS[form])
    if form == "mxfp4":
        return StoredMatrix(form, draw(0, 256, num_out, num_in // 2), draw(121, 127, num_out, num_blocks))
    bytes_OI = draw(0, 256, num_out, num_in)
    # All others are numbers.
    bytes_OI[(bytes_OI & 127) == 127] = 0
    return StoredMatrix(form, bytes_OI, torch.rand(num_out, num_blocks, generator=generator) / 256)
