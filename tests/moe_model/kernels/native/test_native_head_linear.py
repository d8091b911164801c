"""A product for each head in C: for every instruction set here; the same bits in every company.

Shapes: T tokens, H heads, I inputs, O outputs.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import NativeMatrix
from moe_model.kernels.native.native_kernels import NativeKernels
from tests.examples import examples
from tests.moe_model.kernels.native.test_native_linear import HERE

pytestmark = needs_native
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@given(st.sampled_from(HERE), DTYPES, st.integers(1, 5), st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=examples(100))
def test_heads_are_products_by_themselves(
    instruction_set: str, dtype: torch.dtype, num_heads: int, num_in: int, num_out: int
) -> None:
    """To the bit those of `linear`, whose formula is tested."""
    kernels = NativeKernels(instruction_set)
    weight_HOI = torch.randn(num_heads, num_out, num_in).to(dtype)
    x_THI = torch.randn(9, num_heads, num_in)
    y_THO = kernels.head_linear(weight_HOI)(x_THI)
    for head in range(num_heads):
        assert torch.equal(y_THO[:, head], kernels.linear(weight_HOI[head])(x_THI[:, head].contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_every_company_and_any_number_of_threads(dtype: torch.dtype) -> None:
    weight_HOI, x_THI = torch.randn(4, 70, 65).to(dtype), torch.randn(130, 4, 65)
    assert x_THI.numel() * 70 > 200_000, "below, one thread does it all"
    one, four = (NativeKernels(num_threads=number).head_linear(weight_HOI) for number in (1, 4))
    together_THO = four(x_THI)
    for row in (0, 64, 129):
        assert torch.equal(one(x_THI[row : row + 1])[0], together_THO[row])
    for _ in range(20):
        assert torch.equal(four(x_THI), together_THO)


def test_heads_that_do_not_fit_the_matrix_are_refused_instead_of_read_beyond() -> None:
    matrix = NativeMatrix(torch.ones(32, 4))
    with pytest.raises(ValueError, match="32 outputs are not 3 heads of 16"):
        _kernels.head_linear(_kernels.kernels("generic"), matrix.handle, 3, 16, 0, 0, 0, 0, 0, 0, 1)
