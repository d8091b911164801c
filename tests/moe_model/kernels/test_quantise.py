"""What rounding leaves of weights. Shapes: O outputs, I inputs, B blocks of an output, k their inputs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_model.kernels.quantise import BLOCK, dequantise_blocks, matrix_bytes, quantise_blocks, rounded
from moe_model.names import WeightForm

BLOCKS: list[WeightForm] = ["q8", "q4"]


@pytest.mark.parametrize("form", BLOCKS)
@given(st.integers(1, 9), st.integers(1, 100), st.floats(-12, 6), st.integers(0, 99))
def test_values_are_the_nearest_ones(
    form: WeightForm, num_out: int, num_in: int, size: float, seed: int
) -> None:
    weight_OI = 2**size * torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(seed))
    values_OBk, scale_OB = quantise_blocks(weight_OI, form)
    assert values_OBk.shape == (num_out, -(-num_in // BLOCK), BLOCK)
    assert (values_OBk.dtype, scale_OB.dtype) == (torch.int8, torch.float16)
    assert not values_OBk.flatten(1)[:, num_in:].any()
    got_OI = dequantise_blocks(values_OBk, scale_OB, num_in)
    step_OI = scale_OB.float().abs().repeat_interleave(BLOCK, dim=1)[:, :num_in]
    # The largest of q4's other sign is a whole step further than its greatest value.
    is_cut_OI = weight_OI / scale_OB.float().repeat_interleave(BLOCK, dim=1)[:, :num_in] > 7
    most_OI = torch.where(is_cut_OI, 1.01, 0.5001) if form == "q4" else torch.full_like(step_OI, 0.5001)
    # A scale below the normal numbers of float16 is rounded to its steps, and the largest value with it.
    slack_OI = (128 if form == "q8" else 8) * torch.where(step_OI < 2**-14, 2.0**-25, step_OI * 2**-11)
    assert ((got_OI - weight_OI).abs() <= most_OI * step_OI + slack_OI).all()


@pytest.mark.parametrize(("form", "largest"), [("q8", {127, -127}), ("q4", {-8})])
def test_the_largest_of_a_block_uses_all_bits(form: WeightForm, largest: set[int]) -> None:
    values_OBk, _ = quantise_blocks(torch.randn(40, 96), form)
    assert {int(block_k[block_k.abs().argmax()]) for block_k in values_OBk.flatten(0, 1)} == largest


@pytest.mark.parametrize("form", BLOCKS)
def test_blocks_know_nothing_of_each_other(form: WeightForm) -> None:
    weight_OI = torch.randn(3, 70)
    values_OBk, scale_OB = quantise_blocks(weight_OI, form)
    weight_OI[1, 32:64] = 100
    others, scales = quantise_blocks(weight_OI, form)
    same = torch.ones(3, 3, dtype=torch.bool)
    same[1, 1] = False
    assert torch.equal(values_OBk[same], others[same])
    assert torch.equal(scale_OB[same], scales[same])


@pytest.mark.parametrize("form", BLOCKS)
def test_zeros_and_what_is_too_small_are_zero(form: WeightForm) -> None:
    assert not rounded(torch.zeros(2, 40), form).any()
    assert not rounded(torch.full((2, 40), 1e-9), form).any()


@pytest.mark.parametrize("form", BLOCKS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e9])
def test_what_cannot_be_said_is_no_number(form: WeightForm, bad: float) -> None:
    weight_OI = torch.randn(3, 64)
    weight_OI[1, 40] = bad
    got_OI = rounded(weight_OI, form)
    assert not got_OI[1, 40].isfinite()
    assert got_OI[[0, 2]].isfinite().all()
    assert got_OI[1, :32].isfinite().all()


def test_what_a_matrix_takes() -> None:
    assert matrix_bytes((3, 70), torch.bfloat16, "model") == 2 * 3 * 70
    assert matrix_bytes((3, 70), torch.bfloat16, "int8") == 3 * (70 + 4)
    assert matrix_bytes((3, 70), torch.bfloat16, "q8") == 3 * 3 * 34
    assert matrix_bytes((3, 70), torch.bfloat16, "q4") == 3 * 3 * 18
