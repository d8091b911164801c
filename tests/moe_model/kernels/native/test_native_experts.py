"""The experts and the router of the C kernels against torch's. Shapes: T tokens, E experts, K per token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_model import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.base import ExpertBank, Kernels
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import RouterWeights, Routing, row_selection
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.names import WeightForm
from tests.models import random_weights
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native.native_kernels import NativeKernels
from tests.examples import examples

pytestmark = needs_native

E = 5
RULE = SoftmaxOfTopK()


def make_bank(kernels: Kernels, d_model: int = 20, d_ff: int = 37, form: WeightForm = "model") -> ExpertBank:
    config = ModelConfig(
        d_model=d_model, n_heads=2, n_layers=2, d_ff=d_ff, n_experts=E, top_k=2, vocab_size=8, max_seq_len=8
    )
    family = family_of(config)
    experts = random_weights(config).experts
    built = {key: family.build_expert(config, found, kernels, form=form) for key, found in experts.items()}
    return kernels.bank(built)


def _routing(num_tokens: int, top_k: int, seed: int) -> Routing:
    logits_TE = torch.randn(num_tokens, E, generator=torch.Generator().manual_seed(seed))
    return TorchKernels().router(RULE, RouterWeights(torch.eye(E)), top_k)(logits_TE)


@given(st.integers(2, 60), st.integers(1, E), st.integers(0, 99), st.sampled_from(["model", "int8"]))
@settings(max_examples=examples(60), deadline=None)
def test_tokens_get_what_torch_gives_them(num_tokens: int, top_k: int, seed: int, form: WeightForm) -> None:
    x_TD = torch.randn(num_tokens, 20, generator=torch.Generator().manual_seed(seed))
    routing = _routing(num_tokens, top_k, seed)
    # Places that are absent are left out, and a token may have nothing else.
    routing.expert_ids_TK[0] = E
    routing.weights_TK[0] = 0
    expected = make_bank(TorchKernels(), form=form).run_tokens(1, x_TD, routing)
    got = make_bank(NativeKernels(), form=form).run_tokens(1, x_TD, routing)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(got[0], torch.zeros(20))


@given(st.integers(2, 40), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=examples(40), deadline=None)
def test_a_token_has_the_same_bits_in_every_company(num_tokens: int, top_k: int, seed: int) -> None:
    bank, x_TD = make_bank(NativeKernels()), torch.randn(num_tokens, 20)
    routing = _routing(num_tokens, top_k, seed)
    together = bank.run_tokens(0, x_TD, routing)
    for t in range(num_tokens):
        alone = Routing(*(part[t : t + 1].contiguous() for part in _parts(routing)))
        assert torch.equal(bank.run_tokens(0, x_TD[t : t + 1], alone)[0], together[t])


def _parts(routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    return routing.weights_TK, routing.expert_ids_TK, routing.logits_TE


@pytest.mark.parametrize("kernels", [TorchKernels(), NativeKernels()], ids=["torch", "native"])
@given(st.integers(1, 30), st.data())
@settings(max_examples=examples(40), deadline=None)
def test_pairs_rows_and_tokens_say_the_same(kernels: Kernels, num_rows: int, data: st.DataObject) -> None:
    """A worker's two ways to answer, against what the whole would be; for two experts to the bit."""
    bank, x_RD = make_bank(kernels), torch.randn(num_rows, 20)
    routing = _routing(num_rows, 2, data.draw(st.integers(0, 99)))
    segments, rows, weights = [], [], []
    for expert in range(E):
        hits = (routing.expert_ids_TK == expert).nonzero().tolist()
        if hits:
            segments.append((expert, len(hits)))
            rows += [t for t, _ in hits]
            weights += [float(routing.weights_TK[t, k]) for t, k in hits]
    index_P, weights_P = torch.tensor(rows, dtype=torch.int32), torch.tensor(weights)
    y_PD = bank.run_pairs(0, x_RD, index_P, segments)
    y_RD = bank.run_rows(0, x_RD, index_P, segments, weights_P)
    expected_RD = torch.zeros(num_rows, 20)
    for pair, row in enumerate(rows):
        expected_RD[row] += y_PD[pair] * weights_P[pair]
    assert torch.equal(y_RD, expected_RD)
    if isinstance(kernels, NativeKernels):
        assert torch.equal(bank.run_tokens(0, x_RD, routing), y_RD)


def test_segments_that_are_not_those_of_the_pairs_are_refused() -> None:
    bank, x_RD = make_bank(NativeKernels()), torch.randn(3, 20)
    for segments in ([(0, 2)], [(0, 4)], [(0, 2), (1, 2)], [(0, 3), (1, 0)]):
        with pytest.raises(ValueError, match="segments are not those of the pairs"):
            bank.run_rows(0, x_RD, None, segments, torch.ones(3))


@given(st.integers(1, 20), st.integers(1, E), st.integers(0, 999))
@settings(max_examples=examples(60), deadline=None)
def test_router_is_torchs(num_tokens: int, top_k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_ED, x_TD = (
        torch.randn(E, 16, generator=generator),
        torch.randn(num_tokens, 16, generator=generator),
    )
    expected = TorchKernels().router(RULE, RouterWeights(weight_ED), top_k)(x_TD)
    got = NativeKernels().router(RULE, RouterWeights(weight_ED), top_k)(x_TD)
    assert torch.equal(got.expert_ids_TK, expected.expert_ids_TK)
    torch.testing.assert_close(got.weights_TK, expected.weights_TK, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.logits_TE, expected.logits_TE, rtol=1e-5, atol=1e-5)


def test_among_equals_the_lower_expert_wins_whatever_the_neighbours_select() -> None:
    router, x_TD = NativeKernels().router(RULE, RouterWeights(torch.ones(E, 4)), 2), torch.ones(3, 4)
    assert router(x_TD).expert_ids_TK.tolist() == [[0, 1]] * 3
    runs = [(ExpertSelection(top_k=4), 1), (None, 1), (ExpertSelection(allowed=(2, 4)), 1)]
    selected = router(x_TD, row_selection(runs, E, 2))
    assert selected.expert_ids_TK.tolist() == [[0, 1, 2, 3], [0, 1, E, E], [2, 4, E, E]]
    assert selected.weights_TK.tolist() == [[0.25] * 4, [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]]


def test_logits_that_are_not_finite_still_choose_experts_that_exist() -> None:
    router = NativeKernels().router(RULE, RouterWeights(torch.randn(E, 4)), 2)
    x_TD = torch.tensor([[float("nan")] * 4, [float("inf")] * 4, [1.0] * 4])
    routing = router(x_TD)
    assert ((routing.expert_ids_TK >= 0) & (routing.expert_ids_TK < E)).all()
    assert not routing.weights_TK[0].isfinite().any()
    assert routing.weights_TK[2].isfinite().all()
