"""Products with blocks of 8 and 4 bits: the same bits as torch's own operations, for every instruction set
here, in every company, in any number of threads. Shapes: R rows, I inputs, O outputs.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model.kernels.quantise import matrix_bytes, rounded
from moe_model.layers.specs import NormSpec
from moe_model.names import WeightForm
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import NativeLinear, NativeMatrix
from moe_model.kernels.native.native_kernels import NativeKernels
from moe_model.kernels.native.runtime import Runtime, Scratch
from tests.examples import examples
from tests.moe_model.kernels.native.block_products import block_product, rounded_rows
from tests.moe_model.kernels.native.test_native_linear import HERE

pytestmark = needs_native

FORMS: list[WeightForm] = ["q8", "q4"]
SHAPES = [(1, 1), (16, 5), (31, 16), (33, 47), (130, 64), (512, 256), (257, 100), (2048, 17), (5000, 70)]


def weights(num_out: int, num_in: int) -> torch.Tensor:
    weight_OI = torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(num_out))
    return weight_OI / math.sqrt(num_in)


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
def test_is_the_definition_to_the_bit(
    instruction_set: str, form: WeightForm, num_in: int, num_out: int
) -> None:
    weight_OI, bias_O = weights(num_out, num_in), torch.randn(num_out)
    linear = NativeKernels(instruction_set, num_threads=2).linear(weight_OI, bias_O, form=form)
    for num_rows in (1, 2, 3, 4, 5, 6, 7, 13, 97):
        x_RI = 3 * torch.randn(num_rows, num_in)
        expected_RO = block_product(x_RI, weight_OI, form) + bias_O
        assert torch.equal(linear(x_RI), expected_RO), num_rows


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", FORMS)
def test_the_largest_sums_are_exact(instruction_set: str, form: WeightForm) -> None:
    """All values of both sides at their ends, where 16 bits would overflow and products of bytes saturate."""
    signs = torch.tensor([1.0, -1.0])
    for weight_sign in signs:
        weight_OI = weight_sign * torch.ones(20, 96)
        weight_OI[:, ::2] *= signs[torch.randint(0, 2, (20, 48))]
        x_RI = signs[torch.randint(0, 2, (5, 96))] * 2
        x_RI[0], x_RI[1] = 2, -2
        got_RO = NativeKernels(instruction_set).linear(weight_OI, form=form)(x_RI)
        assert torch.equal(got_RO, block_product(x_RI, weight_OI, form))


@given(st.sampled_from(FORMS), st.integers(1, 300), st.integers(1, 70), st.integers(2, 40), st.integers(1, 2))
@settings(max_examples=examples(60), deadline=None)
def test_a_row_has_the_same_bits_in_every_company(
    form: WeightForm, num_in: int, num_out: int, num_rows: int, num_threads: int
) -> None:
    linear = NativeKernels(num_threads=num_threads).linear(weights(num_out, num_in), None, "gelu", form=form)
    x_RI = torch.randn(num_rows, num_in)
    together = linear(x_RI)
    for row in range(num_rows):
        assert torch.equal(linear(x_RI[row : row + 1])[0], together[row])


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("num_rows", [1, 6, 7, 100])
def test_a_gated_product_is_the_formula(
    instruction_set: str, form: WeightForm, num_in: int, num_out: int, num_rows: int
) -> None:
    gate_OI, up_OI = weights(2 * num_out, num_in).chunk(2)
    gate_O, up_O = torch.randn(2, num_out)
    runtime = Runtime(_kernels.kernels(instruction_set), Scratch(), 2)
    linear = NativeLinear(runtime, NativeMatrix(up_OI, up_O, gate_OI, gate_O, form=form), "silu")
    x_RI = torch.randn(num_rows, num_in)
    gate_RO, up_RO = (
        F.linear(rounded_rows(x_RI), rounded(part_OI, form).double(), part_O.double())
        for part_OI, part_O in ((gate_OI, gate_O), (up_OI, up_O))
    )
    torch.testing.assert_close(linear(x_RI).double(), F.silu(gate_RO) * up_RO, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_in", [64, 70])
def test_a_norm_comes_before_rows_are_rounded(form: WeightForm, num_in: int) -> None:
    kernels = NativeKernels()
    norm = kernels.norm(NormSpec("rms_norm", 1e-6), torch.rand(num_in))
    weight_OI, x_RI = weights(40, num_in), 5 * torch.randn(9, num_in)
    fused_RO = kernels.linear(weight_OI, norm=norm, form=form)(x_RI)
    assert torch.equal(fused_RO, kernels.linear(weight_OI, form=form)(norm(x_RI)))


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_stays_in_its_row(instruction_set: str, form: WeightForm) -> None:
    linear = NativeKernels(instruction_set).linear(weights(40, 70), form=form)
    x_RI = torch.randn(9, 70)
    clean_RO = linear(x_RI)
    for bad in (math.nan, math.inf, -math.inf):
        dirty_RI = x_RI.clone()
        dirty_RI[4, 67] = bad
        dirty_RO = linear(dirty_RI)
        assert dirty_RO[4].isnan().all()
        others = [row for row in range(9) if row != 4]
        assert torch.equal(dirty_RO[others], clean_RO[others])


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", FORMS)
def test_weights_that_are_not_finite_stay_in_their_output(instruction_set: str, form: WeightForm) -> None:
    weight_OI = weights(20, 70)
    weight_OI[3, 65] = math.inf
    got_RO = NativeKernels(instruction_set).linear(weight_OI, form=form)(torch.randn(4, 70))
    assert not got_RO[:, 3].isfinite().any()
    assert got_RO[:, [o for o in range(20) if o != 3]].isfinite().all()


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", FORMS)
def test_scales_are_any_of_float16(instruction_set: str, form: WeightForm) -> None:
    """Also those below its normal numbers."""
    size_OB1 = 2.0 ** torch.arange(-30, 18).view(16, 3, 1)
    weight_OI = (size_OB1 * torch.randn(16, 3, 32)).flatten(1)
    x_RI = torch.randn(3, 96)
    got_RO = NativeKernels(instruction_set).linear(weight_OI, form=form)(x_RI)
    assert torch.equal(got_RO, block_product(x_RI, weight_OI, form))


def test_rows_of_any_size_are_rounded_to_their_own_scale() -> None:
    linear = NativeKernels().linear(127 * torch.eye(64), form="q8")
    row_I = torch.linspace(-1, 1, 64)
    for size in (0.0, 1e-40, 1e-25, 1.0, 1e30):
        x_RI = size * row_I.unsqueeze(0)
        error = (linear(x_RI) / 127 - x_RI).abs().max()
        assert error <= max(size / 254 * 1.01, 1e-30)


@pytest.mark.parametrize("form", FORMS)
def test_memory_is_what_the_file_of_a_peer_has(form: WeightForm) -> None:
    """Of sizes that fit panels and blocks, no byte more."""
    matrix = NativeMatrix(torch.randn(1024, 512), form=form)
    assert matrix.num_bytes == matrix_bytes((1024, 512), torch.float32, form)
