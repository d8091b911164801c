"""Whole contexts, windows and latents over the real engine: tokens are those of the model without a cache,
whatever is freed, shared or computed anew."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.step import Step
from coordinator.engine.core.step_result import StepResult
from coordinator.engine.messages.request import ContextOverflow, Request
from moe_model import AssembledModel, ModelConfig
from moe_model.errors import NumericError
from moe_model.families import REGISTRY, family_of
from moe_model.families.deepseek import DeepseekConfig, LatentConfig
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.sampling.params import SamplingParams
from tests.cache_sizes import sizes_of
from tests.coordinator.exchanges import Changing, module_of, rewritten, tokens_of
from tests.examples import examples
from tests.models import (
    Collected,
    Weights,
    build_model,
    collect,
    drain,
    expected_tokens,
    make_request,
    random_reference,
    random_weights,
    write_checkpoint,
)
from tests.native import KERNELS
from tests.windowed_family import ALL_WINDOWED, MIXED, NAME

LATENT = ModelConfig(
    family="deepseek_v3",
    d_model=16,
    n_heads=3,
    n_kv_heads=3,
    head_dim=10,
    n_layers=3,
    d_ff=12,
    n_experts=4,
    top_k=2,
    vocab_size=50,
    max_seq_len=24,
    tie_embedding=False,
    dense_layers=(0,),
    own=DeepseekConfig(
        latent=LatentConfig(None, latent_rank=14, plain_width=6, turning_width=4, value_width=5),
        dense_width=20,
        shared_width=12,
    ),
)
CONFIGS = {"windows and whole contexts": MIXED, "windows": ALL_WINDOWED, "latents": LATENT}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, NAME, "tests.windowed_family")
        yield


@pytest.fixture(scope="module")
def references(registered: None) -> dict[str, AssembledModel]:
    return {name: random_reference(config) for name, config in CONFIGS.items()}


class Unreliable(ModelRunner):
    """Every third step is computed and then fails, as if an answer had been lost at the end."""

    num_runs = 0

    def run(self, step: Step) -> StepResult:
        result = super().run(step)
        self.num_runs += 1
        if self.num_runs % 3 == 0 and len(step.chunks) > 1:
            raise RuntimeError("lost at the end")
        return result


def windowed_engine(
    config: ModelConfig,
    kernels: KernelChoice = "torch",
    num_blocks: int = 40,
    max_num_seqs: int = 5,
    max_step_tokens: int = 64,
    num_parts: int | None = None,
    weights: Weights | None = None,
) -> Engine:
    """`num_blocks` are those for whole contexts."""
    made = choose_kernels(kernels, "cpu")
    sizes = sizes_of(config, num_blocks, 4, max_num_seqs, max_step_tokens)
    cache = KVCache(family_of(config).cache_spec(config), sizes, layout=made.cache_layout)
    for layer in range(config.n_layers):
        for part in cache.layer(layer):
            # What is read without having been written shows.
            part[1:] = float("nan")
    overlap = None if num_parts is None else Overlap(num_parts)
    model = build_model(config, weights or random_weights(config), made)
    runner = Unreliable(model, cache, attention_plan(made), overlap)
    return Engine(Scheduler(sizes, max_num_seqs, max_step_tokens), runner, config.max_seq_len)


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([1, 2]), min_size=1, max_size=30),
        st.integers(1, 12),
        st.booleans(),
        st.integers(0, 6),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=examples(40))
@given(
    wanted=REQUESTS, num_blocks=st.integers(6, 14), step=st.integers(2, 20), parts=st.sampled_from([None, 2])
)
def test_tokens_are_those_of_the_model(
    references: dict[str, AssembledModel],
    name: str,
    kernels: KernelChoice,
    wanted: list[tuple[list[int], int, bool, int, int]],
    num_blocks: int,
    step: int,
    parts: int | None,
) -> None:
    """Prompts over two tokens share often; small caches preempt and evict; long ones slide; steps fail."""
    engine = windowed_engine(CONFIGS[name], kernels, num_blocks, 5, step, parts)
    requests: list[Request] = []
    results: dict[str, Collected] = {}
    for number, (prompt, max_tokens, slides, num_steps, num_sequences) in enumerate(wanted):
        overflow = ContextOverflow.SLIDE if slides or len(prompt) >= 24 else ContextOverflow.STOP
        sampling = SamplingParams(0.9, seed=number)
        request = make_request(str(number), tuple(prompt), max_tokens, sampling, overflow)
        requests.append(replace(request, num_sequences=num_sequences))
        engine.submit(requests[-1])
        for _ in range(num_steps):
            collect(engine.step() if engine.has_work else [], results)
            engine.check_integrity()
    for _ in range(3000):
        collect(engine.step() if engine.has_work else [], results)
    engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    for request in requests:
        assert results[request.request_id].token_ids == expected_tokens(references[name], request)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_contexts_slide_for_every_kind(
    references: dict[str, AssembledModel], name: str, kernels: KernelChoice
) -> None:
    """Positions begin at 0 again, and all that layers keep is computed anew."""
    engine = windowed_engine(CONFIGS[name], kernels, max_step_tokens=7)
    requests = [make_request(str(n), tuple(range(1, 10 + 18 * n)), 18) for n in range(2)]
    for request in requests:
        engine.submit(request)
    results = drain(engine)
    for request in requests:
        assert results[request.request_id].token_ids == expected_tokens(references[name], request)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_versions_share_nothing(tmp_path: Path, name: str, kernels: KernelChoice) -> None:
    """Experts are exchanged while sequences run; those that come later begin as they did."""
    path = write_checkpoint(tmp_path / "old", CONFIGS[name])
    other = write_checkpoint(tmp_path / "other", CONFIGS[name], seed=5)
    changing = Changing.open(path, kernels)
    before, after = (
        [make_request(f"{which}{n}", tuple(range(1, 9 + n)), 14) for n in range(3)] for which in ("a", "b")
    )
    results: dict[str, Collected] = {}
    for request in before:
        changing.engine.submit(request)
    for _ in range(4):
        collect(changing.engine.step(), results)
    for expert in range(4):
        changing.exchange.replace(1, expert, module_of(other, 1, expert))
    for request in after:
        changing.engine.submit(request)
    while changing.engine.has_work:
        collect(changing.engine.step(), results)
        changing.engine.check_integrity()
    others = {(1, expert): Path(module_of(other, 1, expert)) for expert in range(4)}
    new = rewritten(path, tmp_path / "new", others)
    expected = tokens_of(path, changing.config, before) | tokens_of(new, changing.config, after)
    assert {each: result.token_ids for each, result in results.items()} == expected
    assert expected["a0"] != expected["b0"]


@pytest.mark.parametrize("kernels", KERNELS)
def test_what_is_not_finite_behind_a_window_is_found(kernels: KernelChoice) -> None:
    """It is not in what the last row of its chunk sees, but others could share the blocks where it is."""
    weights = random_weights(ALL_WINDOWED)
    broken = {**weights.shared, "embedding.weight": weights.shared["embedding.weight"].clone()}
    broken["embedding.weight"][49] = float("nan")
    engine = windowed_engine(ALL_WINDOWED, kernels, weights=Weights(broken, weights.experts))
    prompt = (49, *range(20))
    for length in (15, 21):
        engine.submit(make_request(str(length), prompt[:length], 1))
        last = drain(engine)[str(length)].last
        assert last is not None
        assert isinstance(last.error, NumericError)
    engine.submit(make_request("fine", prompt[1:], 1))
    last = drain(engine)["fine"].last
    assert last is not None
    assert last.error is None
    engine.check_integrity()


def test_bytes_of_a_latent_are_measured() -> None:
    """rank + turning numbers of each token and layer, whatever the heads."""
    before, after = (_written(LATENT, num_tokens) for num_tokens in (8, 20))
    assert after - before == 12 * (14 + 4) * 3


def _written(config: ModelConfig, num_tokens: int) -> int:
    """Numbers in the cache after a prompt of so many tokens."""
    sizes = sizes_of(config, 40)
    cache = KVCache(family_of(config).cache_spec(config), sizes, layout="token_major")
    parts = [part for layer in range(config.n_layers) for part in cache.layer(layer)]
    for part in parts:
        part.fill_(float("nan"))
    runner = ModelRunner(build_model(config, random_weights(config)), cache)
    engine = Engine(Scheduler(sizes, 4, 64), runner, config.max_seq_len)
    engine.submit(make_request("r", (1,) * num_tokens, 1))
    drain(engine)
    return sum(int(part.isfinite().sum()) for part in parts)
