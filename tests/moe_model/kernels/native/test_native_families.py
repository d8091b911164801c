"""Parts that other families want, in C: for every instruction set here, and in any number of threads.

Shapes: R rows, D d_model, F hidden size, T tokens, H heads, d head size.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from moe_model.kernels.quantise import dequantise_int8, quantise_int8
from moe_model.layers.specs import ExpertSpec, NormSpec, RotarySpec, SwigluLimit
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import NativeLinear, NativeMatrix, NativeNorm
from moe_model.kernels.native.native_kernels import NativeKernels
from moe_model.kernels.native.runtime import Runtime, Scratch
from tests.moe_model.kernels.native.test_native_linear import HERE, ROUNDING_ROWS
from tests.moe_model.layers.test_expert_ffn import random_expert

pytestmark = needs_native

RMS = NormSpec("rms_norm", 1e-6)
SWIGLU = ExpertSpec(norm=None, is_gated=True, activation="silu", has_biases=False)
NORMED = ExpertSpec(norm=RMS, is_gated=True, activation="silu", has_biases=True)
AVX512 = pytest.mark.skipif("avx512" not in HERE, reason="this processor has no AVX-512")


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (16, 5), (33, 47), (130, 64), (257, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("num_rows", [1, 6, 7, 100])
def test_a_gated_product_is_the_formula(
    instruction_set: str, num_in: int, num_out: int, dtype: torch.dtype, num_rows: int
) -> None:
    gate_OI, up_OI = torch.randn(2, num_out, num_in) / num_in**0.5
    gate_O, up_O = torch.randn(2, num_out)
    int8 = dtype == torch.int8
    if not int8:
        gate_OI, up_OI = gate_OI.to(dtype), up_OI.to(dtype)
    matrix = NativeMatrix(up_OI, up_O, gate_OI, gate_O, form="int8" if int8 else "model")
    runtime = Runtime(_kernels.kernels(instruction_set), Scratch(), 2)
    x_RI = torch.randn(num_rows, num_in)
    if int8:
        gate_OI, up_OI = (dequantise_int8(*quantise_int8(weight_OI)) for weight_OI in (gate_OI, up_OI))
    gate = F.linear(x_RI.double(), gate_OI.double(), gate_O.double())
    up = F.linear(x_RI.double(), up_OI.double(), up_O.double())
    tolerance = 0.05 if instruction_set in ROUNDING_ROWS and dtype == torch.bfloat16 else 2e-5
    for activation, expected in (("silu", F.silu(gate) * up), ("gelu", F.gelu(gate) * up)):
        got = NativeLinear(runtime, matrix, "silu" if activation == "silu" else "gelu")(x_RI)
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@AVX512
def test_wider_vectors_change_no_bit() -> None:
    x_RD = torch.randn(9, 52)
    for spec in (NORMED, replace(NORMED, limit=SwigluLimit(0.5, 1.702))):
        tensors = random_expert(spec, 52, 75, 0)
        narrow, wide = (NativeKernels(name).expert(spec, tensors)(x_RD) for name in ("avx2", "avx512"))
        assert torch.equal(narrow, wide)
    x_THd, positions_T = torch.randn(9, 3, 52), torch.randint(0, 1 << 17, (9,))
    rotaries = (NativeKernels(name).rotary(RotarySpec(52, 1e6)) for name in ("avx2", "avx512"))
    narrow, wide = (rotary(x_THd.clone(), positions_T) for rotary in rotaries)
    assert torch.equal(narrow, wide)


@pytest.mark.parametrize("spec", [SWIGLU, NORMED], ids=["plain", "normed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_have_the_same_bits_in_any_number_of_threads(spec: ExpertSpec, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in random_expert(spec, 60, 201, 0).items()}
    x_RD = torch.randn(64, 60)
    assert len(x_RD) * 60 * 201 > 200_000, "below, one thread does it all"
    one, four = (
        kernels.bank({(0, 0): kernels.expert(spec, tensors)})
        for kernels in (NativeKernels(num_threads=1), NativeKernels(num_threads=4))
    )
    expected_RD = one.run_pairs(0, x_RD, None, ((0, 64),))
    for _ in range(50):
        assert torch.equal(four.run_pairs(0, x_RD, None, ((0, 64),)), expected_RD)


def test_rotary_has_the_same_bits_in_any_number_of_threads() -> None:
    x_THd, positions_T = torch.randn(300, 16, 64), torch.randint(0, 1 << 17, (300,))
    assert x_THd.numel() > 200_000, "below, one thread does it all"
    one, four = (NativeKernels(num_threads=number).rotary(RotarySpec(64, 1e4)) for number in (1, 4))
    expected_THd = one(x_THd.clone(), positions_T)
    for _ in range(20):
        assert torch.equal(four(x_THd.clone(), positions_T), expected_THd)


def test_rotary_turns_heads_within_wider_rows_and_nothing_else() -> None:
    rows = torch.randn(5, 4, 8)
    before = rows.clone()
    rotary, positions_T = NativeKernels().rotary(RotarySpec(8, 1e4)), torch.arange(1, 6)
    turned = rotary(rows[:, :3], positions_T)
    assert torch.equal(turned, rotary(before[:, :3].contiguous(), positions_T))
    assert torch.equal(rows[:, 3], before[:, 3])


def test_a_norm_that_does_not_fit_is_refused_instead_of_read_beyond() -> None:
    runtime = Runtime(_kernels.kernels("generic"), Scratch(), 1)
    norm, matrix = NativeNorm(runtime, RMS, torch.ones(7), None), NativeMatrix(torch.ones(4, 8))
    with pytest.raises(ValueError, match="a norm of 7 values before a product of 8"):
        NativeLinear(runtime, matrix, norm=norm)(torch.ones(1, 8))
    with pytest.raises(ValueError, match="a norm of 7 values before a product of 8"):
        _kernels.experts(8, 4, 0, norm.handle, matrix.handle, NativeMatrix(torch.ones(8, 4)).handle)


@pytest.mark.parametrize(
    ("up", "down"), [((4, 9), (8, 4)), ((5, 8), (8, 4)), ((4, 8), (8, 5)), ((4, 8), (9, 4))]
)
def test_matrices_that_do_not_fit_are_refused_instead_of_read_beyond(
    up: tuple[int, int], down: tuple[int, int]
) -> None:
    handles = [NativeMatrix(torch.ones(shape)).handle for shape in (up, down)]
    with pytest.raises(ValueError, match="an expert's matrices are not of 8 and 4"):
        _kernels.experts(8, 4, 0, None, *handles)


def test_an_expert_of_another_dtype_is_refused() -> None:
    """Its rows would be passed on as those of the first."""
    kernels, tensors = NativeKernels(), random_expert(SWIGLU, 8, 4, 0)
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    for other in (half, tensors | {"down.weight": half["down.weight"]}):
        experts = {(0, n): kernels.expert(SWIGLU, found) for n, found in enumerate((tensors, other))}
        with pytest.raises(ValueError, match="an expert's matrices are not of the layer's type"):
            kernels.bank(experts)


def test_a_second_expert_of_another_size_is_refused() -> None:
    kernels = NativeKernels()
    experts = {(0, n): kernels.expert(SWIGLU, random_expert(SWIGLU, 8, 4 + n, 0)) for n in range(2)}
    with pytest.raises(ValueError, match="an expert's matrices are not of 8 and 4"):
        kernels.bank(experts)
