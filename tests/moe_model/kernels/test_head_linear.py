"""Products with a matrix of each head. Shapes: T tokens, H heads, I inputs, O outputs."""

import pytest
import torch

from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from tests.native import KERNELS


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return choose_kernels(request.param, "cpu", 2)


@pytest.mark.parametrize("num_tokens", [1, 2, 40])
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (16, 7), (33, 47), (512, 128)])
def test_is_the_formula(kernels: Kernels, num_tokens: int, num_in: int, num_out: int) -> None:
    weight_HOI, x_THI = torch.randn(3, num_out, num_in) / num_in**0.5, torch.randn(num_tokens, 3, num_in)
    y_THO = kernels.head_linear(weight_HOI)(x_THI)
    expected_THO = torch.einsum("hoi,thi->tho", weight_HOI.double(), x_THI.double())
    assert y_THO.shape == (num_tokens, 3, num_out)
    torch.testing.assert_close(y_THO.double(), expected_THO, rtol=1e-5, atol=1e-5)


def test_heads_may_lie_within_wider_ones(kernels: Kernels) -> None:
    """As a part of each head's values does."""
    weight_HOI, wide_THI = torch.randn(4, 9, 12), torch.randn(5, 4, 20)
    linear = kernels.head_linear(weight_HOI)
    torch.testing.assert_close(linear(wide_THI[..., 3:15]), linear(wide_THI[..., 3:15].contiguous()))


@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_weights_are_the_numbers_that_they_are(name: str) -> None:
    kernels = choose_kernels("native" if name == "native" else "torch", "cpu", 2)
    weight_HOI = (torch.randn(3, 9, 21) / 4).bfloat16()
    x_THI = torch.randn(7, 3, 21).bfloat16().to(kernels.hidden_dtype(torch.bfloat16))
    y_THO = kernels.head_linear(weight_HOI)(x_THI)
    expected_THO = torch.einsum("hoi,thi->tho", weight_HOI.double(), x_THI.double())
    torch.testing.assert_close(y_THO.double(), expected_THO, rtol=0.01, atol=0.01)
