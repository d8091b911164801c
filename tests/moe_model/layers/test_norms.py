"""Norms of all kernels against their formulas in float64. Shapes: R rows, D d_model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.specs import NormKind, NormSpec
from tests.examples import examples
from tests.native import KERNELS, needs_native


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return choose_kernels(request.param, "cpu", 1)


def _formula(spec: NormSpec, x_RD: Tensor, weight_D: Tensor, bias_D: Tensor | None) -> Tensor:
    wide_RD = x_RD.double()
    if spec.kind == "layer_norm":
        wide_RD = wide_RD - wide_RD.mean(-1, keepdim=True)
    y_RD = wide_RD / (wide_RD.pow(2).mean(-1, keepdim=True) + spec.eps).sqrt() * weight_D.double()
    return y_RD if bias_D is None else y_RD + bias_D.double()


@given(
    kind=st.sampled_from(["layer_norm", "rms_norm"]),
    eps=st.sampled_from([1e-6, 1e-5, 0.3]),
    width=st.integers(1, 150),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(60))
def test_is_the_formula(
    kernels: Kernels, kind: NormKind, eps: float, width: int, has_bias: bool, seed: int
) -> None:
    spec, generator = NormSpec(kind, eps), torch.Generator().manual_seed(seed)
    x_RD = torch.randn(5, width, generator=generator) * 3 + 2
    weight_D = torch.randn(width, generator=generator)
    bias_D = torch.randn(width, generator=generator) if has_bias and kind == "layer_norm" else None
    got_RD = kernels.norm(spec, weight_D, bias_D)(x_RD)
    torch.testing.assert_close(got_RD.double(), _formula(spec, x_RD, weight_D, bias_D), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_row_has_the_same_bits_in_every_company(kernels: Kernels, kind: NormKind) -> None:
    norm = kernels.norm(NormSpec(kind, 1e-6), torch.randn(77))
    x_RD = torch.randn(9, 77)
    together = norm(x_RD)
    for row in range(9):
        assert torch.equal(norm(x_RD[row : row + 1])[0], together[row])


@given(
    eps=st.sampled_from([1e-6, 0.3]),
    num_rows=st.integers(1, 9),
    num_heads=st.integers(1, 5),
    width=st.integers(1, 80),
    rest=st.integers(0, 3),
)
@settings(max_examples=examples(60))
def test_heads_are_normed_where_they_are(
    kernels: Kernels, eps: float, num_rows: int, num_heads: int, width: int, rest: int
) -> None:
    """Within wider rows, whose rest stays as it is."""
    spec, weight_D = NormSpec("rms_norm", eps), torch.randn(width)
    wide_THD = torch.randn(num_rows, num_heads + rest, width)
    before_THD = wide_THD.clone()
    kernels.head_norm(spec, weight_D).norm_heads(wide_THD[:, :num_heads])
    expected_THD = _formula(spec, before_THD[:, :num_heads], weight_D, None)
    torch.testing.assert_close(wide_THD[:, :num_heads].double(), expected_THD, rtol=1e-5, atol=1e-5)
    assert torch.equal(wide_THD[:, num_heads:], before_THD[:, num_heads:])


@needs_native
def test_heads_have_the_same_bits_in_any_number_of_threads() -> None:
    x_THD, weight_D = torch.randn(300, 16, 64), torch.randn(64)
    assert x_THD.numel() > 200_000, "below, one thread does it all"
    spec = NormSpec("rms_norm", 1e-6)
    expected = choose_kernels("native", "cpu", 1).norm(spec, weight_D)(x_THD)
    norm = choose_kernels("native", "cpu", 4).head_norm(spec, weight_D)
    for _ in range(20):
        found = x_THD.clone()
        norm.norm_heads(found)
        assert torch.equal(found, expected)


def test_rms_norm_of_bfloat16_rows_is_rounded_before_the_weight_counts() -> None:
    """As most authors' code does; the order decides near ties between experts."""
    x_RD, weight_D = torch.randn(50, 64).bfloat16(), torch.randn(64).bfloat16()
    got_RD = TorchKernels().norm(NormSpec("rms_norm", 1e-6), weight_D)(x_RD)
    wide_RD = x_RD.float()
    quotient_RD = wide_RD * torch.rsqrt(wide_RD.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert got_RD.dtype == torch.bfloat16
    assert torch.equal(got_RD, quotient_RD.bfloat16() * weight_D)
    once_RD = (quotient_RD * weight_D).bfloat16()
    assert not torch.equal(got_RD, once_RD), "the data shows no difference"
    norm = TorchKernels().norm(NormSpec("rms_norm", 1e-6, is_rounded_once=True), weight_D)
    assert torch.equal(norm(x_RD), once_RD)
