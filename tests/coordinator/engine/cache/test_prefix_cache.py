"""The prefix cache over the real model: nothing changes but the work, and nobody reads what is not theirs."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.core.engine import Engine
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.messages.request import ContextOverflow, Request, Returns
from moe_model.errors import NumericError
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.fakes import CountingRunner, FailingRunner, engine_over
from tests.examples import examples
from tests.models import (
    TINY,
    Collected,
    collect,
    drain,
    expected_tokens,
    make_request,
    random_reference,
    tiny_engine,
)

REFERENCE = random_reference(replace(TINY, max_seq_len=24))
COMMON = tuple(range(10, 22))


def counted() -> tuple[Engine, CountingRunner]:
    runner = CountingRunner()
    return engine_over(runner, max_seq_len=40), runner


def num_computed(runner: CountingRunner) -> int:
    return sum(step.num_tokens for step in runner.steps)


def cached(result: Collected) -> int:
    return sum(o.prompt.num_cached for o in result.outputs if o.prompt is not None)


def test_a_common_beginning_is_computed_once() -> None:
    engine, runner = counted()
    engine.submit(make_request("a", (*COMMON, 1, 2), max_tokens=1))
    first = drain(engine)["a"]
    assert (num_computed(runner), cached(first)) == (14, 0)
    engine.submit(make_request("b", (*COMMON, 3), max_tokens=1))
    second = drain(engine)["b"]
    assert (num_computed(runner) - 14, cached(second)) == (1, 12)
    stats = engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (27, 12)
    assert stats.num_free_blocks == stats.num_blocks


def test_who_gave_way_and_comes_back_asks_no_new_question() -> None:
    engine = engine_over(CountingRunner(), max_seq_len=40, num_blocks=6, block_size=4)
    for name, first in (("a", 1), ("b", 2)):
        engine.submit(make_request(name, (first,) * 9, max_tokens=8))
    drain(engine)
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_queries == 18, "the prompts, once"


def test_the_last_token_is_always_computed() -> None:
    engine, runner = counted()
    for name in "ab":
        engine.submit(make_request(name, COMMON, max_tokens=1))
        result = drain(engine)[name]
    assert cached(result) == 8
    assert num_computed(runner) == 12 + 4


def test_outputs_are_remembered_for_the_next_turn() -> None:
    engine, runner = counted()
    engine.submit(make_request("a", COMMON, max_tokens=9))
    answer = drain(engine)["a"].token_ids
    before = num_computed(runner)
    engine.submit(make_request("b", (*COMMON, *answer, 1), max_tokens=1))
    assert cached(drain(engine)["b"]) == 20
    assert num_computed(runner) - before == 2


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_whoever_comes_at_the_same_time_waits_for_the_first(num_sequences: int) -> None:
    engine, runner = counted()
    for name in ("a", "b"):
        request = make_request(name, (*COMMON, ord(name)), max_tokens=2)
        engine.submit(replace(request, num_sequences=num_sequences))
    results = drain(engine)
    assert len(results) == 2 * num_sequences
    assert all(result.token_ids == [13, 14] for result in results.values())
    # The common part once; of each sequence the rest of its prompt and one token that was fed back.
    assert num_computed(runner) == 12 + 2 * num_sequences * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"experts": ExpertSelection((0, 1))},
        {"experts": ExpertSelection(None, 1)},
        {"cache_salt": b"somebody"},
        {"returns": Returns(prompt_logprobs=0)},
        {"returns": Returns(routed_experts=True)},
    ],
    ids=str,
)
def test_what_must_not_be_shared_is_not(changes: dict[str, object]) -> None:
    engine, runner = counted()
    for name, change in (("plain", {}), ("other", changes), ("again", changes)):
        engine.submit(replace(make_request(name, (*COMMON, 1), max_tokens=1), **change))  # type: ignore[arg-type]
        result = drain(engine)[name]
        if name == "other":
            assert cached(result) == 0
    shares_with_itself = "returns" not in changes
    assert cached(result) == (12 if shares_with_itself else 0)
    assert num_computed(runner) == (13 + 13 + 1 if shares_with_itself else 3 * 13)


def test_siblings_of_a_request_that_scores_its_prompt_share_it() -> None:
    engine, runner = counted()
    request = make_request("a", (*COMMON, 1), max_tokens=1)
    engine.submit(replace(request, num_sequences=3, returns=Returns(prompt_logprobs=0)))
    drain(engine)
    assert num_computed(runner) == 13 + 2


def test_without_it_everything_is_computed() -> None:
    runner = CountingRunner()
    engine = engine_over(runner, max_seq_len=40, prefix_caching=False)
    for name in "abc":
        engine.submit(replace(make_request(name, COMMON, max_tokens=1), num_sequences=2))
    assert all(cached(result) == 0 for result in drain(engine).values())
    assert num_computed(runner) == 6 * 12
    assert engine.stats().prefix_queries == 0


def test_what_broke_is_not_remembered() -> None:
    runner = FailingRunner(lambda sequence: sequence.request.request_id == "bad", NumericError("broken"))
    engine = engine_over(runner, max_seq_len=40)
    engine.submit(make_request("bad", COMMON, max_tokens=1))
    last = drain(engine)["bad"].last
    assert last is not None
    assert isinstance(last.error, NumericError)
    engine.submit(make_request("good", COMMON, max_tokens=1))
    assert cached(drain(engine)["good"]) == 0
    engine.check_integrity()


@settings(max_examples=examples(60))
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([1, 2]), min_size=1, max_size=30),
            st.integers(1, 12),
            st.booleans(),
            st.integers(0, 6),
            st.integers(1, 3),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(6, 14),
    st.integers(2, 20),
)
def test_outputs_are_the_same_whatever_is_shared(
    wanted: list[tuple[list[int], int, bool, int, int]], num_blocks: int, max_step_tokens: int
) -> None:
    """Prompts over two tokens share often; small caches preempt and evict; long ones slide."""
    engine = tiny_engine(REFERENCE.model, num_blocks, 4, 5, max_step_tokens)
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
        assert results[request.request_id].token_ids == expected_tokens(REFERENCE, request)


def test_every_sequence_has_blocks_of_its_own_to_write() -> None:
    """Two sequences share a beginning; the first one's slide must not write into what the second reads."""
    engine = tiny_engine(REFERENCE.model, 40)
    prompt = tuple(range(20))
    sliding = make_request("slides", prompt, 15)
    engine.submit(sliding)
    for _ in range(3):
        engine.step()
    staying = make_request("stays", (*prompt[:17], 1), 6, overflow=ContextOverflow.STOP)
    engine.submit(staying)
    results = drain(engine)
    for request in (sliding, staying):
        assert results[request.request_id].token_ids[-3:] == expected_tokens(REFERENCE, request)[-3:]


def test_a_scheduler_says_who_is_coming() -> None:
    engine, _ = counted()
    scheduler: Scheduler = engine._scheduler
    for name in "ab":
        engine.submit(make_request(name, (*COMMON, ord(name)), max_tokens=3))
    engine.step()
    assert (len(scheduler.running), len(scheduler.waiting)) == (1, 1)
    engine.abort("a")
    engine.check_integrity()
    engine.step()
    assert (len(scheduler.running), len(scheduler.waiting)) == (1, 0)
