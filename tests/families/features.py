"""What the product does for every model, as checks of one family; each raises where it does not hold.

Sizes are small: that many workers, chunks and prompts are right is shown elsewhere; here, that no family is
an exception.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from coordinator.config.engine import EngineConfig
from coordinator.engine.cache.cache_sizes import block_bytes
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.messages.output import PromptDetails
from coordinator.engine.messages.request import (
    ConstraintSource,
    ContextOverflow,
    Request,
    Returns,
    StopRules,
)
from coordinator.server.build_engine import build_engine
from coordinator.server.model_facts import read_facts
from coordinator.server.model_texts import ModelTexts
from moe_model import AssembledModel
from moe_model.assembled import dense_attention
from moe_model.families import family_of
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.speculating import Counted
from tests.coordinator.exchanges import Changing
from tests.families.rows import NUM_TOKENS, Row, is_greedy, make_requests, rewritten, run
from tests.models import Collected, expected_tokens

PROMPT = (1, *range(20, 60))


def replicas(row: Row, _folder: Path) -> None:
    assert row.tokens(num_workers=3, replicas=2) == row.alone


def micro_batches(row: Row, _folder: Path) -> None:
    assert row.tokens(replace(row.config, micro_batches=2), num_workers=2) == row.alone


def drafts(row: Row, _folder: Path) -> None:
    """Prompts that repeat themselves, and one that does not."""
    prompts = [(5, 6, 7) * 6, (9,) * 12, (1, *range(20, 40))]
    config = replace(row.config, speculate=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Speculation, "wanted", lambda _self, _num: True)
        with row.open_experts(config, num_workers=2, replicas=2) as experts:
            counted = Counted()
            found = run(
                build_engine(row.checkpoint, config, experts, counted), make_requests(prompts=prompts)
            )
    assert counted.num_drafted > 0
    for prompt, each in zip(prompts, found, strict=True):
        assert is_greedy(row.oracle, prompt, each.token_ids)


def chunked_prefill(row: Row, _folder: Path) -> None:
    assert row.tokens(replace(row.config, max_step_tokens=5)) == row.alone


def preemption(row: Row, _folder: Path) -> None:
    """Blocks for the prompts of two requests, but not for what they grow to."""
    spec = family_of(row.checkpoint.config).cache_spec(row.checkpoint.config)
    num_bytes = 30 * block_bytes(spec, row.config.block_size, torch.float32)
    config = replace(row.config, kv_cache_bytes=num_bytes, max_step_tokens=60)
    asked = make_requests(prompts=[tuple(range(start, start + 50)) for start in (3, 60, 120)])
    with row.open_experts(config) as experts:
        engine = build_engine(row.checkpoint, config, experts)
        results = run(engine, asked)
        assert engine.stats().num_preemptions > 0
    for request, found in zip(asked, results, strict=True):
        assert is_greedy(row.oracle, request.prompt_ids, found.token_ids)


def prefix_cache(row: Row, _folder: Path) -> None:
    with row.open_experts(row.config) as experts:
        engine = build_engine(row.checkpoint, row.config, experts)
        found = [run(engine, make_requests(prompts=[PROMPT]))[0] for _ in range(2)]
    assert found[0].token_ids == found[1].token_ids
    assert is_greedy(row.oracle, PROMPT, found[0].token_ids)
    cached = [piece.num_cached for each in found for piece in _pieces(each)]
    assert (cached[0], cached[-1]) == (0, 40)


def masks(row: Row, _folder: Path) -> None:
    """Only some experts, fewer for each token, and both; beside a request that may use all."""
    selections = [ExpertSelection((0, 2, 5, 6)), ExpertSelection(None, 1), ExpertSelection((1, 3), 2), None]
    asked = make_requests(prompts=[(5 + index, *PROMPT) for index in range(len(selections))])
    asked = [replace(each, experts=selection) for each, selection in zip(asked, selections, strict=True)]
    for request, found in zip(asked, row.run(asked), strict=True):
        assert found.token_ids == expected_tokens(row.oracle, request)


def routing_traces(row: Row, _folder: Path) -> None:
    """One entry for each layer that has experts, of as many experts as a token goes to."""
    config = row.checkpoint.config
    [found] = row.run(make_requests(Returns(routed_experts=True), [PROMPT]), num_workers=2)
    traces = [trace for piece in _pieces(found) for trace in piece.routed_experts]
    traces += [trace for output in found.outputs for trace in output.routed_experts]
    routed_TLK = np.concatenate([trace.ids_TLK for trace in traces])
    assert routed_TLK.shape == (len(PROMPT) + NUM_TOKENS - 1, len(config.moe_layers), config.top_k)
    expected_TLK = _routed(row.oracle, [*PROMPT, *found.token_ids[:-1]])
    assert np.array_equal(np.sort(routed_TLK), np.sort(expected_TLK))


@torch.no_grad()
def _routed(oracle: AssembledModel, ids: list[int]) -> NDArray[np.int64]:
    """The experts of each token in each layer."""
    routed: list[torch.Tensor] = []
    oracle.model.forward(
        torch.tensor(ids),
        torch.arange(len(ids)),
        dense_attention(1, len(ids), None),
        lambda _layer, routing: routed.append(routing.expert_ids_TK),
    )
    return torch.stack(routed, dim=1).numpy()


def log_probabilities(row: Row, _folder: Path) -> None:
    """Of the output and of the prompt."""
    [found] = row.run(make_requests(Returns(logprobs=2, prompt_logprobs=0), [PROMPT]))
    ids = [*PROMPT, *found.token_ids]
    logits_BSV, _ = row.oracle.forward(torch.tensor([ids[:-1]]))
    expected = logits_BSV[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
    said = [each.logprob for piece in _pieces(found) for each in piece.logprobs]
    said += [each.logprob for output in found.outputs for each in output.logprobs]
    torch.testing.assert_close(torch.tensor(said), expected, rtol=1e-3, atol=1e-3)


def structured_output(row: Row, _folder: Path) -> None:
    """Ids that the tokenizer has no token for are not drawn, though the model has logits for them."""
    texts = ModelTexts.open(read_facts(row.checkpoint, row.config))
    assert texts.tokenizer is not None
    try:
        constraint = ConstraintSource("regex", ("[a-f]{5}(and|or) [0-9]+",))
        params, stop = SamplingParams(temperature=1.0, seed=3), StopRules(NUM_TOKENS)
        with row.open_experts(row.config) as experts:
            engine = build_engine(row.checkpoint, row.config, experts, preparer=texts.preparer())
            [found] = run(engine, [Request("r", PROMPT, params, stop, constraint=constraint)])
        text = texts.tokenizer.decode(found.token_ids)
    finally:
        texts.close()
    assert set(text[:5]) <= set("abcdef")
    assert text[5:].startswith(("and ", "or "))


def bfloat16(row: Row, _folder: Path) -> None:
    _check_rounded(row, replace(row.config, dtype="bfloat16"))


def int8_experts(row: Row, _folder: Path) -> None:
    _check_rounded(row, replace(row.config, expert_dtype="int8"))


def q8_weights(row: Row, _folder: Path) -> None:
    _check_rounded(row, replace(row.config, expert_dtype="q8", shared_dtype="q8"))


def _check_rounded(row: Row, config: EngineConfig) -> None:
    """Workers change nothing; against float32 log probabilities differ, and not by much."""
    exact, rounded, remote = (
        row.run(make_requests(Returns(prompt_logprobs=0), [PROMPT]), each, num_workers)[0]
        for each, num_workers in ((row.config, 0), (config, 0), (config, 2))
    )
    assert rounded.token_ids == remote.token_ids
    said = [
        torch.tensor([one.logprob for piece in _pieces(each) for one in piece.logprobs])
        for each in (exact, rounded, remote)
    ]
    assert torch.equal(said[1], said[2])
    assert 0 < (said[0] - said[1]).abs().median() < 0.2


def sliding_context(row: Row, _folder: Path) -> None:
    """An output that goes beyond the longest context, whose first tokens are then left out."""
    prompt = (1, *(3 + 7 * place % 300 for place in range(row.checkpoint.config.max_seq_len - 6)))
    stop = StopRules(NUM_TOKENS, context_overflow=ContextOverflow.SLIDE)
    [found] = row.run([Request("r", prompt, SamplingParams(temperature=0), stop)])
    window, ids = row.checkpoint.config.max_seq_len, list(prompt)
    for token in found.token_ids:
        assert is_greedy(row.oracle, ids[-window:], [token])
        ids.append(token)


def balance(row: Row, _folder: Path) -> None:
    """Numbers are compared with transformers' elsewhere."""
    _, found = row.oracle.forward(torch.tensor([PROMPT]))
    assert found is None or float(found) > 0


def replace_an_expert(row: Row, folder: Path) -> None:
    experts = list(range(row.checkpoint.config.n_experts))
    changing = Changing.open(row.checkpoint.path, row.config.kernels)
    for layer in row.checkpoint.config.moe_layers:
        changing.exchange.replace(layer, 0, _module_file(row, folder, layer))
    _check_changed(row, folder, changing, [1, *experts[1:]], experts)


def add_an_expert(row: Row, folder: Path) -> None:
    """With the router's row of another one, turned round."""
    experts = list(range(row.checkpoint.config.n_experts))
    changing = Changing.open(row.checkpoint.path, row.config.kernels)
    shared = row.checkpoint.read_shared()
    for layer in row.checkpoint.config.moe_layers:
        prefix = f"blocks.{layer}.router"
        router = {"router.weight": -shared[f"{prefix}.weight"][3]}
        for part in ("bias", "correction"):
            if f"{prefix}.{part}" in shared:
                router[f"router.{part}"] = shared[f"{prefix}.{part}"][3:4].clone()
        save_file(router, folder / "router.safetensors")
        file = _module_file(row, folder, layer)
        changing.exchange.add(layer, file, None, str(folder / "router.safetensors"))
    _check_changed(row, folder, changing, [*experts, 1], [*experts, -4])


def remove_an_expert(row: Row, folder: Path) -> None:
    changing = Changing.open(row.checkpoint.path, row.config.kernels)
    left = [expert for expert in range(row.checkpoint.config.n_experts) if expert != 2]
    for layer in row.checkpoint.config.moe_layers:
        changing.exchange.remove(layer, 2)
    _check_changed(row, folder, changing, left, left)


def _module_file(row: Row, folder: Path, layer: int) -> str:
    """Expert 1 of a layer."""
    path = folder / f"expert-{layer}.safetensors"
    save_file(row.checkpoint.read_expert(layer, 1), path)
    return str(path)


def _check_changed(row: Row, folder: Path, changing: Changing, experts: list[int], rows: list[int]) -> None:
    changed = AssembledModel.from_checkpoint(rewritten(row.checkpoint, folder / "changed", experts, rows))
    [found] = run(changing.engine, make_requests(prompts=[PROMPT]))
    assert is_greedy(changed, PROMPT, found.token_ids)
    assert not is_greedy(row.oracle, PROMPT, found.token_ids), "a change that changes nothing shows nothing"


def _pieces(found: Collected) -> list[PromptDetails]:
    return [output.prompt for output in found.outputs if output.prompt is not None]


Check = Callable[[Row, Path], None]
FEATURES: tuple[Check, ...] = (
    replicas,
    micro_batches,
    drafts,
    chunked_prefill,
    preemption,
    prefix_cache,
    masks,
    routing_traces,
    log_probabilities,
    structured_output,
    bfloat16,
    int8_experts,
    q8_weights,
    sliding_context,
    balance,
    replace_an_expert,
    add_an_expert,
    remove_an_expert,
)
