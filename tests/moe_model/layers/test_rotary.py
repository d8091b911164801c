"""Rotary positions of all kernels. Shapes: T tokens, H heads, d head size, P pairs, r values that turn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from moe_model.errors import ConfigError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.rotary import TorchRotary, attention_factor, rotary_rates
from moe_model.layers.specs import Pairing, RotaryScaling, RotarySpec
from tests.examples import examples
from tests.native import KERNELS

PAIRINGS: tuple[Pairing, ...] = ("half_split", "interleaved")


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return choose_kernels(request.param, "cpu", 1)


def _formula(spec: RotarySpec, x_THd: Tensor, positions_T: Tensor) -> Tensor:
    """In float64, but for the angles, which are float32 by definition: pair by pair, as complex numbers."""
    y_THd = x_THd.double()
    for i, rate in enumerate(rotary_rates(spec)):
        interleaved = spec.pairing == "interleaved"
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + spec.dim // 2)
        angles_T1 = (positions_T.float() * rate).double().unsqueeze(1)
        pair_TH = torch.complex(x_THd[..., first].double(), x_THd[..., second].double())
        turned_TH = pair_TH * torch.complex(angles_T1.cos(), angles_T1.sin())
        y_THd[..., first], y_THd[..., second] = turned_TH.real, turned_TH.imag
    return y_THd


@given(
    pairing=st.sampled_from(PAIRINGS),
    half=st.integers(1, 40),
    rest=st.integers(0, 5),
    num_heads=st.integers(1, 5),
    positions=st.lists(st.integers(0, 1 << 18), min_size=1, max_size=9),
)
@settings(max_examples=examples(80))
def test_is_the_formula(
    kernels: Kernels, pairing: Pairing, half: int, rest: int, num_heads: int, positions: list[int]
) -> None:
    spec, positions_T = RotarySpec(2 * half, 10_000.0, pairing), torch.tensor(positions)
    x_THd = torch.randn(len(positions), num_heads, 2 * half + rest)
    expected_THd = _formula(spec, x_THd, positions_T)
    got_THd = kernels.rotary(spec)(x_THd.clone(), positions_T)
    torch.testing.assert_close(got_THd.double(), expected_THd, rtol=0, atol=1e-6)
    assert torch.equal(got_THd[..., 2 * half :], x_THd[..., 2 * half :]), "the rest does not turn"


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e5, 12345.6])
def test_the_frequencies_are_the_formulas_to_float32(theta: float) -> None:
    for i, rate in enumerate(rotary_rates(RotarySpec(128, theta)).tolist()):
        assert rate == pytest.approx(theta ** (-2 * i / 128), rel=1e-6)


SCALINGS = [
    RotaryScaling("linear", 2.5),
    RotaryScaling("llama3", 8.0, 40, 1.0, 4.0),
    RotaryScaling("llama3", 32.0, 8192, 1.0, 4.0),
    RotaryScaling("yarn", 4.0, 40, 1.0, 32.0, True, 1.14),
    RotaryScaling("yarn", 32.0, 4096, 1.0, 32.0, False, 1.3466),
    RotaryScaling("yarn", 40.0, 4096, 1.0, 32.0, True, 1.0),
    # As Kimi-K2's: both ends are one turn.
    RotaryScaling("yarn", 32.0, 4096, 1.0, 1.0, True, 1.0),
    # Neither end is within the pairs.
    RotaryScaling("yarn", 4.0, 2, 1.0, 32.0, True, 1.0),
    # One end is far behind the last pair, where it counts as the last number of a head.
    RotaryScaling("yarn", 4.0, 1 << 30, 0.01, 1e6, True, 1.0),
]


def _published(scaling: RotaryScaling, spec: RotarySpec) -> tuple[Tensor, float]:
    """What transformers says."""
    rope = {
        "rope_type": scaling.kind,
        "rope_theta": spec.theta,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "beta_slow": scaling.low,
        "beta_fast": scaling.high,
        "truncate": scaling.truncate,
        "attention_factor": scaling.attention_factor if scaling.kind == "yarn" else None,
    }
    config = LlamaConfig(hidden_size=2 * spec.dim, num_attention_heads=2, max_position_embeddings=1 << 17)
    config.rope_parameters = rope
    rates_P, factor = ROPE_INIT_FUNCTIONS[scaling.kind](config, "cpu")
    return rates_P, factor


@pytest.mark.parametrize("dim", [6, 64])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_scaled_frequencies_are_those_of_transformers(scaling: RotaryScaling, dim: int) -> None:
    spec = RotarySpec(dim, 150_000.0, scaling=scaling)
    rates_P, factor = _published(scaling, spec)
    torch.testing.assert_close(rotary_rates(spec), rates_P, rtol=1e-6, atol=0)
    assert attention_factor(spec) == factor


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_what_turns_grows_by_the_attention_factor(kernels: Kernels, pairing: Pairing) -> None:
    scaling = RotaryScaling("yarn", 4.0, 40, 1.0, 32.0, True, 1.14)
    spec, positions_T = RotarySpec(16, 3e3, pairing, scaling), torch.arange(0, 9000, 1000)
    x_THd = torch.randn(9, 3, 21)
    expected_THd = _formula(spec, x_THd, positions_T)
    expected_THd[..., :16] *= 1.14
    got_THd = kernels.rotary(spec)(x_THd.clone(), positions_T)
    torch.testing.assert_close(got_THd.double(), expected_THd, rtol=0, atol=2e-6)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_scores_depend_on_the_distance_alone(kernels: Kernels, pairing: Pairing) -> None:
    rotary = kernels.rotary(RotarySpec(16, 10_000.0, pairing))
    q_1Hd, k_1Hd = torch.randn(2, 1, 3, 16)

    def score(at: int, seen: int) -> Tensor:
        q_THd = rotary(q_1Hd.clone(), torch.tensor([at]))
        return (q_THd * rotary(k_1Hd.clone(), torch.tensor([seen]))).sum(-1)

    torch.testing.assert_close(score(7, 2), score(1005, 1000), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(score(7, 2), score(7, 3), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_row_has_the_same_bits_in_every_company(kernels: Kernels, pairing: Pairing) -> None:
    rotary = kernels.rotary(RotarySpec(20, 10_000.0, pairing))
    x_THd, positions_T = torch.randn(9, 3, 24), torch.randint(0, 50_000, (9,))
    together = rotary(x_THd.clone(), positions_T)
    for row in range(9):
        alone = rotary(x_THd[row : row + 1].clone(), positions_T[row : row + 1])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("dim", [0, 1, 7, 1026, -2])
def test_values_that_cannot_turn_in_pairs_are_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match="values cannot turn in pairs"):
        RotarySpec(dim, 1e4)


@pytest.mark.parametrize("theta", [0.0, -1.0, math.inf, math.nan])
def test_a_theta_that_gives_no_frequencies_is_refused(theta: float) -> None:
    with pytest.raises(ConfigError, match="rotary positions: theta"):
        RotarySpec(4, theta)


def test_a_head_that_is_too_small_is_refused(kernels: Kernels) -> None:
    """Not read beyond its end."""
    with pytest.raises((ValueError, RuntimeError)):
        kernels.rotary(RotarySpec(8, 1e4))(torch.randn(2, 3, 6), torch.tensor([1, 2]))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_rows_that_are_rounded_once_are_those_of_float32(pairing: Pairing) -> None:
    """In bfloat16, which is torch's alone: the C kernels compute in float32."""
    x_THd = torch.randn(50, 3, 20).bfloat16()
    positions_T = torch.arange(50)
    once, twice = (RotarySpec(16, 1e4, pairing, is_rounded_once=is_once) for is_once in (True, False))
    exact_THd = TorchRotary(once)(x_THd.float(), positions_T)
    assert torch.equal(exact_THd, TorchRotary(twice)(x_THd.float(), positions_T))
    assert torch.equal(TorchRotary(once)(x_THd, positions_T), exact_THd.bfloat16())
    assert not torch.equal(TorchRotary(twice)(x_THd, positions_T), exact_THd.bfloat16())
