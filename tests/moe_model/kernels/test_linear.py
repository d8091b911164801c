"""Linear against the formula, packed or not. Shapes: I inputs, O outputs, R rows."""

import pytest
import torch
import torch.nn.functional as F

from moe_model.kernels.linear import TorchLinear as Linear


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (16, 5), (33, 47), (512, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 17])
def test_is_the_formula(num_in: int, num_out: int, dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    weight_OI = torch.randn(num_out, num_in).to(dtype)
    bias_O = torch.randn(num_out).to(dtype) if has_bias else None
    x_RI = torch.randn(num_rows, num_in).to(dtype)
    y = x_RI.double() @ weight_OI.double().T + (0 if bias_O is None else bias_O.double())
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    scale = num_in**0.5
    for activation, expected in (("none", y), ("gelu", F.gelu(y))):
        got = Linear(weight_OI, bias_O, "gelu" if activation == "gelu" else "none")(x_RI)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * scale)


def test_takes_any_leading_dimensions_and_strides() -> None:
    linear, x = Linear(torch.randn(3, 4)), torch.randn(2, 4, 5)
    rows = x.transpose(1, 2)
    torch.testing.assert_close(linear(rows).flatten(0, 1), linear(rows.flatten(0, 1)))


def test_a_row_of_nan_stays_in_its_row() -> None:
    linear, x_RI = Linear(torch.randn(8, 16)), torch.randn(4, 16)
    clean = linear(x_RI)
    x_RI[2] = float("nan")
    dirty = linear(x_RI)
    assert dirty[2].isnan().all()
    assert torch.equal(dirty[[0, 1, 3]], clean[[0, 1, 3]])
