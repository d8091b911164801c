"""The products of the C kernels: the formula, for every instruction set here; the same bits in every company.

Shapes: R rows, I inputs, O outputs.
"""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_model.kernels.quantise import dequantise_int8, quantise_int8
from moe_model.layers.specs import NormSpec
from moe_model.names import INSTRUCTION_SETS, InstructionSet, WeightForm
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native import _kernels, native_kernels
from moe_model.kernels.native.linear import NativeLinear
from moe_model.kernels.native.native_kernels import NativeKernels, best_that_is_right
from tests.examples import examples

pytestmark = needs_native


def _here() -> list[InstructionSet]:
    found: list[InstructionSet] = []
    for name in INSTRUCTION_SETS:
        try:
            _kernels.kernels(name)
        except (ValueError, OSError):
            continue
        found.append(name)
    return found


def _form(dtype: str) -> WeightForm:
    return "int8" if dtype == "int8" else "model"


HERE = _here()
# Products of bfloat16 pairs: rows are rounded too.
ROUNDING_ROWS = ("amx", "avx512bf16")
SHAPES = [(1, 1), (16, 5), (33, 47), (130, 64), (512, 256), (257, 100)]


def _weights(dtype: str, num_out: int, num_in: int) -> tuple[Tensor, Tensor]:
    """(what the kernels get, the numbers it stands for)"""
    weight_OI = torch.randn(num_out, num_in, generator=torch.Generator().manual_seed(num_out)) / num_in**0.5
    if dtype == "int8":
        return weight_OI, dequantise_int8(*quantise_int8(weight_OI))
    rounded_OI = weight_OI.to(getattr(torch, dtype))
    return rounded_OI, rounded_OI.float()


@pytest.mark.parametrize("instruction_set", HERE)
@pytest.mark.parametrize(("num_in", "num_out"), SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 5, 6, 7, 13, 100, 193])
def test_is_the_formula(instruction_set: str, num_in: int, num_out: int, dtype: str, num_rows: int) -> None:
    kernels = NativeKernels(instruction_set)
    weight_OI, numbers_OI = _weights(dtype, num_out, num_in)
    generator = torch.Generator().manual_seed(num_rows)
    x_RI = torch.randn(num_rows, num_in, generator=generator)
    bias_O = torch.randn(num_out, generator=generator)
    residual_RO = torch.randn(num_rows, num_out, generator=generator)
    y = x_RI.double() @ numbers_OI.double().T + bias_O.double()
    tolerance = 0.03 if instruction_set in ROUNDING_ROWS and dtype == "bfloat16" else 1e-5
    plain = kernels.linear(weight_OI, bias_O, form=_form(dtype))(x_RI)
    torch.testing.assert_close(plain.double(), y, rtol=tolerance, atol=tolerance)
    full = kernels.linear(weight_OI, bias_O, "gelu", form=_form(dtype))(x_RI, residual_RO)
    expected = F.gelu(y) + residual_RO.double()
    torch.testing.assert_close(full.double(), expected, rtol=tolerance, atol=tolerance)


@given(
    st.sampled_from(["float32", "bfloat16", "int8"]),
    st.integers(1, 140),
    st.integers(1, 70),
    st.integers(2, 40),
    st.integers(1, 2),
)
@settings(max_examples=examples(80), deadline=None)
def test_a_row_has_the_same_bits_in_every_company(
    dtype: str, num_in: int, num_out: int, num_rows: int, num_threads: int
) -> None:
    kernels = NativeKernels(num_threads=num_threads)
    linear = kernels.linear(_weights(dtype, num_out, num_in)[0], None, "gelu", form=_form(dtype))
    x_RI = torch.randn(num_rows, num_in)
    together = linear(x_RI)
    for row in range(num_rows):
        assert torch.equal(linear(x_RI[row : row + 1])[0], together[row])


@pytest.mark.skipif("avx512" not in HERE, reason="this processor has no AVX-512")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_wider_vectors_change_no_bit(dtype: str) -> None:
    weight_OI, _ = _weights(dtype, 100, 300)
    x_RI = torch.randn(9, 300)
    narrow, wide = (
        NativeKernels(name).linear(weight_OI, form=_form(dtype))(x_RI) for name in ("avx2", "avx512")
    )
    assert torch.equal(narrow, wide)


@pytest.mark.parametrize("instruction_set", HERE)
def test_gelu_is_exact_to_float32(instruction_set: str) -> None:
    x_R1 = torch.cat([torch.linspace(-14, 14, 200_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4])])
    identity = NativeKernels(instruction_set).linear(torch.ones(1, 1), None, "gelu")
    got = identity(x_R1.unsqueeze(1)).squeeze(1)
    # Not F.gelu, whose 1 + erf(x) loses the tail even in float64.
    expected = x_R1.double() / 2 * torch.special.erfc(-x_R1.double() / 2**0.5)
    error = (got.double() - expected).abs()
    # As good as one can be told from the next float32; in the tail, where nothing is left, to five digits.
    assert (error <= 2e-7 * x_R1.abs()).all(), error.max()
    assert (error <= 3e-5 * expected.abs() + 1e-37).all()


def test_what_is_not_finite_stays_in_its_row() -> None:
    linear = NativeKernels().linear(torch.randn(40, 50), None, "gelu")
    x_RI = torch.randn(9, 50)
    clean = linear(x_RI)
    for bad in (float("nan"), float("inf"), float("-inf")):
        dirty_RI = x_RI.clone()
        dirty_RI[4, 7] = bad
        dirty = linear(dirty_RI)
        assert not dirty[4].isfinite().all()
        others = [row for row in range(9) if row != 4]
        assert torch.equal(dirty[others], clean[others])


@pytest.mark.parametrize("width", [1, 7, 8, 64, 100, 513])
def test_norm_is_layer_norm(width: int) -> None:
    kernels = NativeKernels()
    x_RD = torch.randn(5, width) * 3 + 2
    weight_D, bias_D = torch.randn(width), torch.randn(width)
    norm = kernels.norm(NormSpec("layer_norm", 1e-5), weight_D, bias_D)
    expected = F.layer_norm(x_RD.double(), (width,), weight_D.double(), bias_D.double())
    torch.testing.assert_close(norm(x_RD).double(), expected, rtol=1e-5, atol=1e-5)
    weight_OD = torch.randn(11, width)
    fused = kernels.linear(weight_OD, norm=norm)(x_RD)
    assert torch.equal(fused, kernels.linear(weight_OD)(norm(x_RD)))


def test_an_instruction_set_that_is_not_here_is_refused() -> None:
    with pytest.raises(ValueError, match="this processor has no kernels wide"):
        NativeKernels("wide")


@pytest.fixture
def chosen_anew() -> Iterator[None]:
    best_that_is_right.cache_clear()
    yield
    best_that_is_right.cache_clear()


@pytest.mark.usefixtures("chosen_anew")
def test_wrong_kernels_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    best = HERE[0]
    product = NativeLinear.__call__

    def broken(self: NativeLinear, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = product(self, x, residual)
        return y + 1 if _kernels.name(self._runtime.kernels) == best else y

    monkeypatch.setattr(NativeLinear, "__call__", broken)
    assert NativeKernels().instruction_set != best
    assert f"the {best} kernels are wrong on this processor" in caplog.text


@pytest.mark.skipif("avx512bf16" not in HERE, reason="this processor does not multiply pairs of bfloat16")
def test_rows_that_are_wanted_exact_are_not_rounded() -> None:
    weight_OI, x_RI = torch.randn(37, 301).bfloat16(), torch.randn(5, 301)
    pairs, widened = (NativeKernels(name, 1) for name in ("avx512bf16", "avx512"))
    exact_RO = widened.linear(weight_OI)(x_RI)
    assert torch.equal(pairs.linear(weight_OI, exact_rows=True)(x_RI), exact_RO)
    assert not torch.equal(pairs.linear(weight_OI)(x_RI), exact_RO)
    weight_HOI, x_THI = weight_OI[:36].view(3, 12, 301), torch.randn(5, 3, 301)
    exact_THO = widened.head_linear(weight_HOI)(x_THI)
    assert torch.equal(pairs.head_linear(weight_HOI, exact_rows=True)(x_THI), exact_THO)
    assert not torch.equal(pairs.head_linear(weight_HOI)(x_THI), exact_THO)


@pytest.mark.usefixtures("chosen_anew")
def test_tiles_that_the_system_refuses_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = _kernels.kernels

    def refusing(name: str | None) -> object:
        if name == "amx":
            raise OSError("this system does not let a process use kernels amx: Operation not supported")
        return found(name)

    monkeypatch.setattr(_kernels, "kernels", refusing)
    for found_once in (native_kernels.instruction_sets, native_kernels.best_that_is_right):
        monkeypatch.setattr(native_kernels, found_once.__name__, cache(found_once.__wrapped__))
    assert NativeKernels().instruction_set == next(name for name in HERE if name != "amx")
    assert "kernels amx: Operation not supported" in caplog.text
