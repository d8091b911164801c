"""Experts of any spec: every bank says what the formula says.

Shapes: R rows, P pairs, D d_model, F hidden size.
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_model.errors import ConfigError
from moe_model.kernels.base import ExpertBank, Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.kernels.grouped import GroupedBank
from moe_model.kernels.linear import ACTIVATIONS
from moe_model.kernels.quantise import rounded
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.layers.expert_ffn import cut_expert, tensor_names
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.layers.specs import ExpertSpec, NormSpec, SwigluLimit
from moe_model.names import ROUNDED_FORMS, WeightForm
from tests.examples import examples
from tests.native import KERNELS

SWIGLU = ExpertSpec(norm=None, is_gated=True, activation="silu", has_biases=False)
# Within what hidden values of random experts are, so that all of its branches are met.
LIMITED = replace(SWIGLU, limit=SwigluLimit(0.5, 1.702))
SPECS = st.sampled_from([LIMITED, replace(LIMITED, has_biases=True)]) | st.builds(
    ExpertSpec,
    norm=st.sampled_from([None, NormSpec("layer_norm", 1e-5), NormSpec("rms_norm", 1e-6)]),
    is_gated=st.booleans(),
    activation=st.sampled_from(["none", "gelu", "silu"]),
    has_biases=st.booleans(),
)


class Grouped(TorchKernels):
    """The kernels of a GPU, without one."""

    def bank(self, experts: Mapping[ExpertKey, Expert]) -> ExpertBank:
        return GroupedBank.of(experts)


@pytest.fixture(scope="module", params=[*KERNELS, "grouped"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Grouped() if request.param == "grouped" else choose_kernels(request.param, "cpu", 1)


def random_expert(spec: ExpertSpec, width: int, hidden_width: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"norm": (width,), "gate": (hidden_width, width), "up": (hidden_width, width)}
    shapes["down"] = (width, hidden_width)
    tensors = {}
    for name in tensor_names(spec):
        part, kind = name.split(".")
        shape = shapes[part] if kind == "weight" else shapes[part][:1]
        tensors[name] = torch.randn(shape, generator=generator) / shape[-1] ** (0.5 * (len(shape) == 2))
    return tensors


def formula(spec: ExpertSpec, tensors: Mapping[str, Tensor], x_RD: Tensor) -> Tensor:
    """In float64."""
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    n_RD = x_RD.double()
    if spec.norm is not None:
        if spec.norm.kind == "layer_norm":
            n_RD = n_RD - n_RD.mean(-1, keepdim=True)
        n_RD = n_RD / (n_RD.pow(2).mean(-1, keepdim=True) + spec.norm.eps).sqrt() * wide["norm.weight"]
        n_RD = n_RD + wide.get("norm.bias", torch.zeros(()))

    def product(part: str, rows: Tensor) -> Tensor:
        return F.linear(rows, wide[f"{part}.weight"], wide.get(f"{part}.bias"))

    activation = ACTIVATIONS[spec.activation]
    up_RF = product("up", n_RD)
    if spec.limit is not None:
        gate_RF = product("gate", n_RD).minimum(torch.tensor(spec.limit.limit))
        up_RF = up_RF.minimum(torch.tensor(spec.limit.limit)).maximum(torch.tensor(-spec.limit.limit))
        return product("down", (up_RF + 1) * gate_RF / (1 + (-spec.limit.alpha * gate_RF).exp()))
    return product("down", activation(product("gate", n_RD)) * up_RF if spec.is_gated else activation(up_RF))


# Grouped products want rows of 16 bytes.
@given(SPECS, st.integers(1, 20), st.integers(1, 20), st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=examples(80))
def test_every_bank_says_what_the_formula_says(
    kernels: Kernels, spec: ExpertSpec, width: int, hidden_width: int, num_rows: int, seed: int
) -> None:
    if isinstance(kernels, Grouped):
        width, hidden_width = 4 * width, 4 * hidden_width
    tensors = {expert: random_expert(spec, width, hidden_width, seed + expert) for expert in range(3)}
    bank = kernels.bank({(0, e): kernels.expert(spec, found) for e, found in tensors.items()})
    x_RD = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))
    got_PD = bank.run_pairs(0, x_RD, None, ((2, 1), (0, num_rows - 1)))
    expected_PD = torch.cat([formula(spec, tensors[2], x_RD[:1]), formula(spec, tensors[0], x_RD[1:])])
    torch.testing.assert_close(got_PD.double(), expected_PD, rtol=2e-5, atol=2e-5)


@given(SPECS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=examples(80))
def test_slices_of_an_expert_add_up_to_it(
    kernels: Kernels, spec: ExpertSpec, width: int, hidden_width: int, num_slices: int, seed: int
) -> None:
    if isinstance(kernels, Grouped):
        width, hidden_width = 4 * width, 4 * hidden_width
    tensors = random_expert(spec, width, num_slices * hidden_width, seed)
    x_RD = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    sum_RD = torch.zeros(3, width, dtype=torch.float64)
    for index in range(num_slices):
        cut = cut_expert(tensors, ExpertSlice(index, num_slices))
        bank = kernels.bank({(0, 0): kernels.expert(spec, cut)})
        sum_RD += bank.run_pairs(0, x_RD, None, ((0, 3),)).double()
    torch.testing.assert_close(sum_RD, formula(spec, tensors, x_RD), rtol=5e-5, atol=5e-5)


def test_a_slice_keeps_no_other_memory() -> None:
    tensors = random_expert(replace(SWIGLU, has_biases=True), 8, 16, 0)
    for cut in cut_expert(tensors, ExpertSlice(1, 2)).values():
        assert cut.is_contiguous()
        assert cut.untyped_storage().nbytes() == cut.nbytes


@given(SPECS, st.integers(1, 40), st.integers(1, 70), st.integers(2, 20), st.sampled_from(ROUNDED_FORMS))
@settings(max_examples=examples(60))
def test_a_row_has_the_same_bits_in_every_company(
    spec: ExpertSpec, width: int, hidden_width: int, num_rows: int, form: WeightForm
) -> None:
    native = choose_kernels("auto", "cpu", 2)
    if native.name != "native":
        pytest.skip("the C kernels are not built")
    expert = native.expert(spec, random_expert(spec, width, hidden_width, 0), form=form)
    bank, x_RD = native.bank({(0, 0): expert}), torch.randn(num_rows, width)
    together_RD = bank.run_pairs(0, x_RD, None, ((0, num_rows),))
    assert torch.equal(expert(x_RD), together_RD), "alone, an expert is what it is in a bank"
    for row in range(num_rows):
        assert torch.equal(bank.run_pairs(0, x_RD[row : row + 1], None, ((0, 1),))[0], together_RD[row])


def _rounds_rows(kernels: Kernels, form: WeightForm) -> bool:
    return kernels.name == "native" and form in ("q8", "q4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ROUNDED_FORMS)
@pytest.mark.parametrize("hidden_width", [3, 16, 37, 150])
@pytest.mark.parametrize("spec", [SWIGLU, replace(LIMITED, has_biases=True)], ids=["plain", "limited"])
def test_dtypes_of_a_gated_expert(
    kernels: Kernels, dtype: torch.dtype, form: WeightForm, hidden_width: int, spec: ExpertSpec
) -> None:
    if isinstance(kernels, Grouped):
        if dtype == torch.bfloat16:
            pytest.skip("on a CPU, bfloat16 matrices are packed and cannot be grouped")
        hidden_width = -(-hidden_width // 8) * 8
    tensors = {name: t.to(dtype) for name, t in random_expert(spec, 24, hidden_width, 7).items()}
    numbers = {n: rounded(t.float(), form) if n.endswith("weight") else t for n, t in tensors.items()}
    bank = kernels.bank({(0, 0): kernels.expert(spec, tensors, form=form)})
    x_RD = torch.randn(11, 24, generator=torch.Generator().manual_seed(1)).to(kernels.hidden_dtype(dtype))
    got_RD = bank.run_pairs(0, x_RD, None, ((0, 11),))
    tolerance = 0.06 if _rounds_rows(kernels, form) else 0.03 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got_RD.double(), formula(spec, numbers, x_RD), rtol=tolerance, atol=tolerance)


def test_silu_is_exact_to_float32(kernels: Kernels) -> None:
    x_R1 = torch.cat([torch.linspace(-90, 90, 40_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4])])
    got = kernels.linear(torch.ones(1, 1), None, "silu")(x_R1.unsqueeze(1)).squeeze(1)
    expected = F.silu(x_R1.double())
    error = (got.double() - expected).abs()
    assert (error <= 3e-7 * expected.abs() + 2e-36).all(), error.max()


@pytest.mark.parametrize("spec", [SWIGLU, LIMITED], ids=["plain", "limited"])
def test_what_is_not_finite_stays_in_its_row(kernels: Kernels, spec: ExpertSpec) -> None:
    expert = kernels.expert(spec, random_expert(spec, 24, 40, 0))
    bank, clean_RD = kernels.bank({(0, 0): expert}), torch.randn(9, 24)
    clean = bank.run_pairs(0, clean_RD, None, ((0, 9),))
    for bad in (float("nan"), float("inf"), float("-inf")):
        dirty_RD = clean_RD.clone()
        dirty_RD[4, 7] = bad
        dirty = bank.run_pairs(0, dirty_RD, None, ((0, 9),))
        assert not dirty[4].isfinite().all()
        others = [row for row in range(9) if row != 4]
        assert torch.equal(dirty[others], clean[others])


@pytest.mark.parametrize("form", ROUNDED_FORMS)
@pytest.mark.parametrize("hidden_width", [8, 40])
def test_a_limit_acts_on_both_sides(kernels: Kernels, hidden_width: int, form: WeightForm) -> None:
    tensors = random_expert(LIMITED, 24, hidden_width, 7)
    x_RD = 9 * torch.randn(11, 24, generator=torch.Generator().manual_seed(1))
    gate_RF, up_RF = (F.linear(x_RD, tensors[f"{part}.weight"]) for part in ("gate", "up"))
    for values in (gate_RF, up_RF, -up_RF):
        assert values.max() > 0.5 > values.min()
    numbers = {n: rounded(t, form) for n, t in tensors.items()}
    bank = kernels.bank({(0, 0): kernels.expert(LIMITED, tensors, form=form)})
    got_RD = bank.run_pairs(0, x_RD, None, ((0, 11),))
    tolerance = 0.05 if _rounds_rows(kernels, form) else 2e-5
    torch.testing.assert_close(
        got_RD.double(), formula(LIMITED, numbers, x_RD), rtol=tolerance, atol=tolerance
    )


def test_a_limit_that_is_none_is_refused() -> None:
    for limit, alpha in ((0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (7.0, 0.0), (7.0, float("inf"))):
        with pytest.raises(ConfigError, match=r"experts: .* of their hidden values is"):
            SwigluLimit(limit, alpha)
    with pytest.raises(ConfigError, match="experts: a limit is of gated ones"):
        replace(LIMITED, is_gated=False)


def test_tensors_that_are_not_those_of_the_spec_are_refused(kernels: Kernels) -> None:
    tensors = random_expert(SWIGLU, 8, 16, 0)
    with pytest.raises(AssertionError):
        kernels.expert(SWIGLU, tensors | {"up.bias": torch.zeros(16)})
    with pytest.raises(AssertionError):
        kernels.expert(SWIGLU, tensors | {"gate.weight": torch.zeros(16, 9)})
    with pytest.raises(AssertionError):
        kernels.expert(SWIGLU, tensors | {"down.weight": torch.zeros(8, 17)})
