"""The law of drafts: tokens, log probabilities, routing and finish reasons are those of an engine without,
for any mixture of requests, over any kind of cache, whatever fails, gives way or is shared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.core.prepared import Prepared
from coordinator.engine.messages.request import ContextOverflow, Request, Returns, StopRules, TokenRules
from coordinator.engine.sampling.stop_text import TextMatcher
from coordinator.engine.sampling.token_mask import TokenMask
from moe_model import ModelConfig
from moe_model.families import REGISTRY
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.constraints import OnlyToken
from tests.coordinator.engine.speculating import Counted, Said, Sizes, engine_with
from tests.coordinator.engine.test_cache_kinds import LATENT
from tests.examples import examples
from tests.models import TINY, Collected, collect
from tests.native import KERNELS
from tests.windowed_family import ALL_WINDOWED, MIXED, NAME

VOCAB = 50
WHOLE = replace(TINY, max_seq_len=24)
CONFIGS = {"whole": WHOLE, "windows and whole": MIXED, "windows": ALL_WINDOWED, "latents": LATENT}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, NAME, "tests.windowed_family")
        yield


@dataclass(frozen=True)
class Wanted:
    """A request, what comes of its vocabulary, and how many steps are run before the next one comes."""

    request: Request
    stops: tuple[bytes, ...] = ()
    is_constrained: bool = False
    num_steps: int = 0

    def prepared(self) -> Prepared:
        rules = self.request.token_rules
        return Prepared(
            OnlyToken(7) if self.is_constrained else None,
            None if rules is None else TokenMask(rules, VOCAB),
            self._text if self.stops else None,
        )

    def _text(self) -> TextMatcher:
        return TextMatcher(self.stops, lambda token_id: bytes([token_id]))


# A few tokens that are likely, so that outputs repeat themselves, and what changes logits.
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.5, 1.2]),
    top_k=st.sampled_from([0, 2]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 9),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2]),
    logit_bias=st.sampled_from([(), ((1, 6.0), (2, 6.0), (3, 5.0))]),
)
STOP = st.builds(
    StopRules,
    max_tokens=st.integers(1, 20),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.sampled_from([frozenset(), frozenset({2})]),
    eos_token_ids=st.sampled_from([frozenset(), frozenset({3})]),
)
RETURNS = st.builds(
    Returns,
    logprobs=st.sampled_from([None, 0, 2]),
    prompt_logprobs=st.sampled_from([None, None, 1]),
    routed_experts=st.booleans(),
)
RULES = st.sampled_from([None, TokenRules(allowed=(1, 2, 3)), TokenRules(forbidden=((1, 2), (3,)))])
SELECTIONS = st.sampled_from([None, None, ExpertSelection((0, 2)), ExpertSelection(None, 1)])


@st.composite
def wanted(draw: st.DrawFn) -> Wanted:
    prompt = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=28)))
    slides = draw(st.booleans()) or len(prompt) >= WHOLE.max_seq_len
    rules = replace(draw(STOP), context_overflow=ContextOverflow.SLIDE if slides else ContextOverflow.STOP)
    request = Request(
        "",
        prompt,
        draw(SAMPLING),
        rules,
        draw(st.integers(1, 2)),
        draw(RETURNS),
        draw(SELECTIONS),
        token_rules=draw(RULES),
    )
    stops = draw(st.sampled_from([(), (), (b"\x01\x02\x01", b"\x03")]))
    return Wanted(request, stops, draw(st.integers(0, 9)) == 0, draw(st.integers(0, 4)))


def said(
    most: int | None,
    config: ModelConfig,
    kernels: Kernels,
    some: list[Wanted],
    sizes: Sizes,
    counted: Counted,
) -> dict[str, Said]:
    engine = engine_with(most, config, kernels, sizes, counted)
    results: dict[str, Collected] = {}
    for number, each in enumerate(some):
        engine.submit(replace(each.request, request_id=str(number)), each.prepared())
        for _ in range(each.num_steps):
            collect(engine.step(), results)
            engine.check_integrity()
    for _ in range(3000):
        if not engine.has_work:
            break
        collect(engine.step(), results)
        engine.check_integrity()
    assert not engine.has_work
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return {name: Said.of(found) for name, found in results.items()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=examples(60))
@given(
    some=st.lists(wanted(), min_size=1, max_size=6),
    most=st.integers(1, 6),
    sizes=st.builds(
        Sizes,
        num_blocks=st.integers(7, 30),
        max_num_seqs=st.integers(1, 5),
        max_step_tokens=st.integers(2, 24),
        num_parts=st.sampled_from([None, 2]),
        fails=st.booleans(),
    ),
)
def test_all_that_is_said_is_the_same(
    name: str, kernels: KernelChoice, some: list[Wanted], most: int, sizes: Sizes
) -> None:
    made, config = choose_kernels(kernels, "cpu", 1), CONFIGS[name]
    expected = said(None, config, made, some, sizes, Counted())
    found = said(most, config, made, some, sizes, Counted())
    if kernels == "native":
        assert found == expected, "to the bit"
        return
    # Torch's products depend on how many rows they have.
    assert rounded(found) == rounded(expected)


def rounded(results: dict[str, Said]) -> dict[str, Said]:
    """Without what torch computes differently for another number of rows."""
    return {name: replace(each, logprobs=[], prompt_logprobs=[]) for name, each in results.items()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_repetitive_text_takes_fewer_steps(name: str, kernels: KernelChoice) -> None:
    """And what was drafted and not drawn is there as well: the law above is about something."""
    made, config, counted = choose_kernels(kernels, "cpu", 1), CONFIGS[name], Counted()
    likely = SamplingParams(0.4, seed=1, logit_bias=((1, 9.0), (2, 8.0)))
    stop = StopRules(max_tokens=18)
    some = [Wanted(Request("", (1, 2, 1, 2, 1), likely, stop, returns=Returns(logprobs=1))) for _ in range(3)]
    expected = said(None, config, made, some, Sizes(), Counted())
    assert rounded(said(4, config, made, some, Sizes(), counted)) == rounded(expected)
    assert 0 < counted.num_accepted < counted.num_drafted
