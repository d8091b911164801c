"""AssembledModel: equal to ModularForge's own numbers, and the laws that hold for any shape.

Shapes: B batch, S sequence, V vocabulary, T tokens, K experts per token.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import moe_model
from moe_model import AssembledModel, ModelConfig
from moe_model.assembled import dense_attention
from moe_model.errors import CheckpointError, UserError
from moe_model.layers.router import Routing
from moe_model.sampling.draw import sample, uniform
from moe_model.sampling.params import SamplingParams
from tests.examples import examples
from tests.models import TINY, random_reference, write_checkpoint

SHAPES = [
    TINY,
    replace(TINY, tie_embedding=True),
    replace(TINY, top_k=1),
    replace(TINY, top_k=4),
    replace(TINY, n_experts=1, top_k=1),
    replace(TINY, n_layers=1, n_experts=7, top_k=3),
    replace(TINY, n_heads=1, n_kv_heads=0, head_dim=0, d_model=6, d_ff=5, vocab_size=3),
    replace(TINY, n_heads=4, n_kv_heads=0, head_dim=0, d_model=4, max_seq_len=1),
]


@pytest.mark.parametrize("case", ["full", "one", "padded"])
def test_golden_logits_and_loss(
    golden: Mapping[str, Tensor], golden_model: AssembledModel, case: str
) -> None:
    mask_BS = golden.get(f"{case}.attention_mask")
    logits_BSV, aux_loss = golden_model.forward(golden[f"{case}.input_ids"], mask_BS)
    torch.testing.assert_close(logits_BSV, golden[f"{case}.logits"], rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(aux_loss, golden[f"{case}.aux_loss"].squeeze(), rtol=0, atol=1e-5)
    assert aux_loss is not None
    assert aux_loss.shape == ()


def test_golden_routing(golden: Mapping[str, Tensor], golden_model: AssembledModel) -> None:
    ids_BS = golden["full.input_ids"]
    seen: dict[int, Routing] = {}
    batch, seq_len = ids_BS.shape
    positions_T = torch.arange(seq_len).repeat(batch)
    attend = dense_attention(batch, seq_len, None)
    golden_model.model.forward(ids_BS.flatten(), positions_T, attend, seen.__setitem__)
    for layer in range(golden_model.config.n_layers):
        weights_BSK, ids_BSK = golden[f"full.route.{layer}.weights"], golden[f"full.route.{layer}.indices"]
        assert torch.equal(seen[layer].expert_ids_TK, ids_BSK.flatten(0, 1))
        torch.testing.assert_close(seen[layer].weights_TK, weights_BSK.flatten(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["greedy", "greedy_long_prompt"])
def test_golden_greedy_tokens(golden: Mapping[str, Tensor], golden_model: AssembledModel, case: str) -> None:
    prompt, expected = golden[f"{case}.prompt"], golden[f"{case}.output"]
    count = expected.shape[1] - prompt.shape[1]
    assert expected.shape[1] > golden_model.config.max_seq_len, "must go past the window"
    assert torch.equal(golden_model.generate(prompt, count, temperature=0), expected)
    assert torch.equal(golden_model.generate(prompt[0], count, temperature=0), expected)


def test_golden_parameter_counts(golden_facts: dict[str, Any], golden_model: AssembledModel) -> None:
    assert golden_model.n_params == golden_facts["n_params"]
    assert golden_model.n_active_params_per_token == golden_facts["n_active_params_per_token"]


def test_is_importable_from_the_package() -> None:
    assert moe_model.AssembledModel is AssembledModel
    with pytest.raises(AttributeError, match="nothing"):
        _ = moe_model.nothing


@pytest.mark.parametrize("config", SHAPES)
def test_rows_of_a_batch_are_independent(config: ModelConfig) -> None:
    model = random_reference(config)
    ids_BS = torch.randint(config.vocab_size, (4, config.max_seq_len))
    logits_BSV, _ = model.forward(ids_BS)
    assert logits_BSV.shape == (*ids_BS.shape, config.vocab_size)
    for row in range(4):
        alone_1SV, _ = model.forward(ids_BS[row : row + 1])
        torch.testing.assert_close(alone_1SV[0], logits_BSV[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", SHAPES)
def test_a_token_does_not_see_what_comes_after_it(config: ModelConfig) -> None:
    model = random_reference(config)
    ids_1S = torch.randint(config.vocab_size, (1, config.max_seq_len))
    whole_1SV, _ = model.forward(ids_1S)
    for count in range(1, config.max_seq_len + 1):
        prefix_1SV, _ = model.forward(ids_1S[:, :count])
        torch.testing.assert_close(prefix_1SV, whole_1SV[:, :count], rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(0, 10), min_size=2, max_size=4), st.integers(0, 2**31))
@settings(max_examples=examples(20))
def test_what_padding_holds_does_not_matter(num_pads: list[int], seed: int) -> None:
    """Left-padded rows: the tokens under the mask change no logit of a token that is not."""
    model = random_reference()
    generator = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(TINY.vocab_size, (len(num_pads), 11), generator=generator)
    mask_BS = torch.stack([(torch.arange(11) >= pads).long() for pads in num_pads])
    noise_BS = torch.randint(TINY.vocab_size, ids_BS.shape, generator=generator)
    other_BS = torch.where(mask_BS == 1, ids_BS, noise_BS)
    logits_BSV, _ = model.forward(ids_BS, mask_BS)
    other_logits_BSV, _ = model.forward(other_BS, mask_BS)
    assert logits_BSV.isfinite().all()
    seen = mask_BS == 1
    torch.testing.assert_close(logits_BSV[seen], other_logits_BSV[seen], rtol=1e-4, atol=1e-4)


def test_a_mask_of_ones_is_no_mask() -> None:
    model, ids_BS = random_reference(), torch.randint(50, (2, 9))
    plain, _ = model.forward(ids_BS)
    masked, _ = model.forward(ids_BS, torch.ones_like(ids_BS))
    assert torch.equal(plain, masked)


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("prompt_len", [1, 12, 20])
def test_generate_recomputes_the_window_for_every_token(config: ModelConfig, prompt_len: int) -> None:
    model = random_reference(config, seed=3)
    ids_BS = torch.randint(config.vocab_size, (2, prompt_len))
    expected_BS = ids_BS
    for _ in range(15):
        logits_BSV, _ = model.forward(expected_BS[:, -config.max_seq_len :])
        expected_BS = torch.cat([expected_BS, logits_BSV[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(ids_BS, 15, temperature=0), expected_BS)


def test_a_seeded_row_draws_from_its_own_counter() -> None:
    model, prompt = random_reference(), torch.tensor([[5, 6, 7], [5, 6, 7]])
    params = SamplingParams(1.3, top_k=20, top_p=0.95, seed=11)
    expected_BS = prompt
    for position in range(3, 3 + 14):
        logits_BSV, _ = model.forward(expected_BS[:, -12:])
        uniforms = [uniform(11, row, position) for row in range(2)]
        picked = sample(logits_BSV[:, -1], [params] * 2, uniforms)
        expected_BS = torch.cat([expected_BS, torch.tensor(picked).unsqueeze(1)], dim=1)
    got_BS = model.generate(prompt, 14, temperature=1.3, top_k=20, top_p=0.95, seed=11)
    assert torch.equal(got_BS, expected_BS)
    assert not torch.equal(got_BS[0], got_BS[1]), "each row has a stream of its own"


def test_no_seed_is_another_one_each_time() -> None:
    model, prompt = random_reference(), torch.tensor([1])
    outputs = {tuple(model.generate(prompt, 20, temperature=1.5, top_p=1.0)[0].tolist()) for _ in range(4)}
    assert len(outputs) > 1


def test_generate_ends_with_the_eos_it_appends() -> None:
    model, prompt = random_reference(), torch.tensor([1, 2, 3])
    free = model.generate(prompt, 20, temperature=0)[0, 3:].tolist()
    eos = free[4]
    stopped = model.generate(prompt, 20, temperature=0, eos_token_id=eos)[0, 3:].tolist()
    assert stopped == free[: free.index(eos) + 1]
    with pytest.raises(UserError, match="eos_token_id"):
        model.generate(prompt.repeat(2, 1), eos_token_id=eos)


def test_generate_of_no_tokens_returns_the_prompt() -> None:
    assert random_reference().generate(torch.tensor([4, 5]), 0).tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "non-empty"),
        (torch.zeros(0, 3, dtype=torch.int64), "non-empty"),
        (torch.zeros(3, dtype=torch.int64), "non-empty"),
        (torch.zeros(1, 13, dtype=torch.int64), "13 tokens, the model takes 12"),
        (torch.tensor([[1, 50]]), r"50 is not in \[0, 50\)"),
        (torch.tensor([[-1, 49]]), r"-1 is not in \[0, 50\)"),
    ],
)
def test_ids_that_the_model_does_not_have_are_refused(ids: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        random_reference().forward(ids)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match="attention_mask"):
        random_reference().forward(torch.tensor([[1, 2]]), torch.ones(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_checkpoint(tmp_path: Path, dtype: torch.dtype) -> None:
    model = AssembledModel.from_checkpoint(write_checkpoint(tmp_path / "c", seed=4), dtype=dtype)
    assert (model.model.dtype, model.model.device) == (dtype, torch.device("cpu"))
    logits_BSV, _ = model.forward(torch.tensor([[1, 2, 3]]))
    expected_BSV, _ = random_reference(seed=4).forward(torch.tensor([[1, 2, 3]]))
    assert logits_BSV.dtype == torch.float32
    if dtype == torch.float32:
        assert torch.equal(logits_BSV, expected_BSV)
    else:
        torch.testing.assert_close(logits_BSV, expected_BSV, rtol=0.2, atol=0.5)


def test_from_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        AssembledModel.from_checkpoint(tmp_path / "missing")
