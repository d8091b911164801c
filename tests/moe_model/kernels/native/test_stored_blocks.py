"""Products with a checkpoint's own bytes, for every instruction set here: of MXFP4 the bits of torch's own
operations, of FP8 the product in float64; in every company the same. Shapes: R rows, I inputs, O outputs.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_model.kernels.quantise import matrix_bytes
from moe_model.layers.stored_matrix import StoredMatrix, random_matrix
from moe_model.names import STORED_FORMS, StoredForm
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import NativeLinear, NativeMatrix
from moe_model.kernels.native.runtime import Runtime, Scratch
from tests.examples import examples
from tests.moe_model.kernels.native.block_products import add_blocks, rounded_rows, row_blocks
from tests.moe_model.kernels.native.test_native_linear import HERE
from tests.stored_numbers import integers, numbers

pytestmark = needs_native

SHAPES = [(32, 5), (32, 16), (96, 47), (160, 64), (512, 256), (288, 100), (2080, 17)]
# Of FP8 any width.
WIDTHS = [(1, 1), (5, 16), (127, 33), (128, 16), (129, 47), (1000, 70)]
ROWS = (1, 2, 3, 4, 5, 6, 7, 13, 97)


def drawn(form: StoredForm, num_in: int, num_out: int, seed: int = 0) -> StoredMatrix:
    return random_matrix(form, num_out, num_in, torch.Generator().manual_seed(seed + num_out))


def linear(instruction_set: str | None, matrix: NativeMatrix, num_threads: int = 2) -> NativeLinear:
    return NativeLinear(Runtime(_kernels.kernels(instruction_set), Scratch(), num_threads), matrix)


def mxfp4_product(x_RI: Tensor, matrix: StoredMatrix) -> Tensor:
    return add_blocks(row_blocks(x_RI), integers(matrix))


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
def test_mxfp4_is_the_definition_to_the_bit(instruction_set: str, num_in: int, num_out: int) -> None:
    matrix, bias_O = drawn("mxfp4", num_in, num_out), torch.randn(num_out)
    product = linear(instruction_set, NativeMatrix(matrix, bias_O, form="mxfp4"))
    for num_rows in ROWS:
        x_RI = 3 * torch.randn(num_rows, num_in)
        assert torch.equal(product(x_RI), mxfp4_product(x_RI, matrix) + bias_O), num_rows


@pytest.mark.parametrize("instruction_set", HERE)
def test_mxfp4_has_all_codes_in_all_places_and_all_scales(instruction_set: str) -> None:
    """Byte by byte, and each power of two that there is, also those below float32's normal numbers."""
    bytes_Ob = (torch.arange(256)[:, None] + torch.arange(16)).to(torch.uint8)
    scale_O1 = torch.arange(256)[:, None].clamp_max(254).to(torch.uint8)
    matrix = StoredMatrix("mxfp4", bytes_Ob, scale_O1)
    product = linear(instruction_set, NativeMatrix(matrix, form="mxfp4"))
    for size in (1e-3, 1.0):
        x_RI = size * torch.randn(40, 32)
        assert torch.equal(product(x_RI), mxfp4_product(x_RI, matrix))
    # Input by input, with 127, which a row rounds to an integer of 127 and a scale of 1.
    found_RO = product(127 * torch.eye(32))[:, :240]
    assert torch.equal(found_RO.double(), 127 * numbers(matrix).t()[:, :240])


@pytest.mark.parametrize("instruction_set", HERE)
def test_the_largest_sums_of_mxfp4_are_exact(instruction_set: str) -> None:
    signs = torch.tensor([1.0, -1.0])
    for both in (0x77, 0xFF, 0x7F, 0xF7):
        matrix = StoredMatrix(
            "mxfp4",
            torch.full((20, 48), both, dtype=torch.uint8),
            torch.full((20, 3), 127, dtype=torch.uint8),
        )
        x_RI = 2 * signs[torch.randint(0, 2, (5, 96))]
        x_RI[0], x_RI[1] = 2, -2
        found_RO = linear(instruction_set, NativeMatrix(matrix, form="mxfp4"))(x_RI)
        assert torch.equal(found_RO, mxfp4_product(x_RI, matrix))


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize(("num_in", "num_out"), [*SHAPES, *WIDTHS])
def test_fp8_is_the_product_with_exact_rows(instruction_set: str, num_in: int, num_out: int) -> None:
    matrix, bias_O = drawn("fp8", num_in, num_out), torch.randn(num_out)
    product, exact_OI = linear(instruction_set, NativeMatrix(matrix, bias_O, form="fp8")), numbers(matrix)
    for num_rows in ROWS:
        x_RI = torch.randn(num_rows, num_in)
        expected_RO = x_RI.double() @ exact_OI.t() + bias_O
        # Of float32's additions, beside sums of the sizes.
        size_RO = x_RI.double().abs() @ exact_OI.abs().t() + bias_O.abs()
        assert ((product(x_RI) - expected_RO).abs() <= 1e-6 * size_RO).all(), num_rows


@pytest.mark.parametrize("instruction_set", HERE)
def test_fp8_has_all_bytes(instruction_set: str) -> None:
    """Each of them in each place of a vector, also those below e4m3's normal numbers; exactly."""
    bytes_OI = (torch.arange(256)[:, None] + torch.arange(40)).to(torch.uint8)
    bytes_OI[(bytes_OI & 127) == 127] = 0
    scale_O1 = 2.0 ** (torch.arange(256) % 60 - 30.0).unsqueeze(1)
    matrix = StoredMatrix("fp8", bytes_OI, scale_O1)
    found_RO = linear(instruction_set, NativeMatrix(matrix, form="fp8"))(torch.eye(40))
    assert torch.equal(found_RO.double(), numbers(matrix).t())


@pytest.mark.parametrize(("num_in", "num_out"), [(129, 47), (1000, 70)])
def test_fp8_has_the_same_bits_wherever_products_are_fused(num_in: int, num_out: int) -> None:
    matrix, x_RI = NativeMatrix(drawn("fp8", num_in, num_out), form="fp8"), torch.randn(9, num_in)
    found = [linear(each, matrix)(x_RI) for each in HERE if each != "generic"]
    assert all(torch.equal(each, found[0]) for each in found)


@given(
    st.sampled_from(STORED_FORMS),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(2, 40),
    st.integers(1, 2),
)
@settings(max_examples=examples(60), deadline=None)
def test_a_row_has_the_same_bits_in_every_company(
    form: StoredForm, num_blocks: int, num_out: int, num_rows: int, num_threads: int
) -> None:
    num_in = 32 * num_blocks
    product = linear(None, NativeMatrix(drawn(form, num_in, num_out), form=form), num_threads)
    x_RI = torch.randn(num_rows, num_in)
    together = product(x_RI)
    for row in range(num_rows):
        assert torch.equal(product(x_RI[row : row + 1])[0], together[row])


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", STORED_FORMS)
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("num_rows", [1, 7, 100])
def test_a_gated_product_is_the_formula(
    instruction_set: str, form: StoredForm, num_in: int, num_out: int, num_rows: int
) -> None:
    gate, up = drawn(form, num_in, num_out), drawn(form, num_in, num_out, seed=1)
    gate_O, up_O = torch.randn(2, num_out)
    matrix = NativeMatrix(up, up_O, gate, gate_O, form=form)
    runtime = Runtime(_kernels.kernels(instruction_set), Scratch(), 2)
    x_RI = torch.randn(num_rows, num_in) / num_in
    rows_RI = rounded_rows(x_RI) if form == "mxfp4" else x_RI.double()
    gate_RO, up_RO = (
        F.linear(rows_RI, numbers(part), part_O.double()) for part, part_O in ((gate, gate_O), (up, up_O))
    )
    found_RO = NativeLinear(runtime, matrix, "silu")(x_RI)
    torch.testing.assert_close(found_RO.double(), F.silu(gate_RO) * up_RO, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize("form", STORED_FORMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(instruction_set: str, form: StoredForm, bad: float) -> None:
    product = linear(instruction_set, NativeMatrix(drawn(form, 96, 20), form=form))
    x_RI = torch.randn(9, 96)
    clean = product(x_RI)
    x_RI[4, 7] = bad
    dirty, others = product(x_RI), [row for row in range(9) if row != 4]
    assert not dirty[4].isfinite().any()
    assert torch.equal(dirty[others], clean[others])


@pytest.mark.parametrize("form", STORED_FORMS)
def test_memory_is_what_the_file_has(form: StoredForm) -> None:
    """Of mxfp4 no byte more; of fp8 the scale of a block once for each of its outputs."""
    matrix = NativeMatrix(drawn(form, 512, 1024), form=form)
    assert matrix.num_bytes == matrix_bytes((1024, 512), torch.float32, form)
    assert matrix.num_bytes == 1024 * 512 * (17 / 32 if form == "mxfp4" else 1 + 4 / 128)
