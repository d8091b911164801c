"""Engine: equal to the oracle whatever else runs, and nothing lost whatever happens."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.engine import CapacityError, Engine, EngineError
from coordinator.engine.request import ContextOverflow, FinishReason, Output, Request, StopRules
from coordinator.engine.scheduler import Step
from moe_model import AssembledModel, ModelConfig
from moe_model.errors import ExpertsLostError, NumericError, UserError
from moe_model.sampling import SamplingParams
from tests.coordinator.engine.fakes import CountingRunner, ScriptedRunner, engine_over
from tests.models import (
    TINY,
    Collected,
    build_model,
    collect,
    drain,
    expected_tokens,
    make_request,
    random_reference,
    random_weights,
    tiny_engine,
)

STOP, SLIDE = ContextOverflow.STOP, ContextOverflow.SLIDE
GREEDY = SamplingParams(temperature=0)
REFERENCE = random_reference()

PROMPTS = [(1, 2, 3), (7,), tuple(range(20, 31)), tuple(range(12)), tuple(range(10, 40)), (49, 0, 49)]


def mixed_requests(count: int = 16) -> list[Request]:
    """Greedy and seeded, short and far past the window, STOP and SLIDE."""
    requests = []
    for n in range(count):
        prompt = PROMPTS[n % len(PROMPTS)]
        overflow = SLIDE if n % 3 or len(prompt) >= TINY.max_seq_len else STOP
        sampling = GREEDY if n % 2 else SamplingParams(0.9, top_k=n % 5 * 4, top_p=0.95, seed=n)
        requests.append(make_request(f"r{n}", prompt, 5 + 3 * n % 17, sampling, overflow))
    return requests


def check_all(results: dict[str, Collected], requests: list[Request], reference: AssembledModel) -> None:
    assert set(results) == {request.request_id for request in requests}
    for request in requests:
        result = results[request.request_id]
        assert result.token_ids == expected_tokens(reference, request), request
        assert result.last is not None
        assert result.last.finish_reason is FinishReason.LENGTH


def check_idle(engine: Engine) -> None:
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks
    assert not engine.has_work


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"max_step_tokens": 5, "max_num_seqs": 3},
        {"num_blocks": 3},
        {"num_blocks": 5, "max_step_tokens": 7},
        {"max_step_tokens": 1},
        {"block_size": 16, "num_blocks": 2},
        {"block_size": 1, "num_blocks": 20},
    ],
    ids=str,
)
def test_mixed_concurrent_requests_equal_the_oracle(sizes: dict[str, int]) -> None:
    engine, requests = tiny_engine(REFERENCE.model, **sizes), mixed_requests()  # type: ignore[arg-type]
    for request in requests:
        engine.submit(request)
    check_all(drain(engine, 20_000), requests, REFERENCE)
    check_idle(engine)
    if sizes.get("num_blocks") in (3, 5):
        assert engine.stats().num_preemptions > 0


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, top_k=1),
        replace(TINY, top_k=4, tie_embedding=True),
        replace(TINY, n_experts=1, top_k=1, n_layers=1),
        replace(TINY, max_seq_len=1),
        replace(TINY, n_heads=1, d_model=6, n_experts=7, top_k=3, max_seq_len=9),
    ],
    ids=str,
)
def test_other_shapes_equal_the_oracle(config: ModelConfig) -> None:
    reference = random_reference(config, seed=5)
    requests = [make_request(f"r{n}", prompt, 14) for n, prompt in enumerate(PROMPTS)]
    engine = tiny_engine(reference.model, num_blocks=12, max_step_tokens=11)
    for request in requests:
        engine.submit(request)
    check_all(drain(engine), requests, reference)
    check_idle(engine)


def test_the_golden_model_past_its_window(
    golden: dict[str, torch.Tensor], golden_model: AssembledModel
) -> None:
    engine = tiny_engine(golden_model.model, num_blocks=24, max_step_tokens=20)
    expected = {}
    for case in ("greedy", "greedy_long_prompt"):
        prompt, output = golden[f"{case}.prompt"][0].tolist(), golden[f"{case}.output"][0].tolist()
        expected[case] = output[len(prompt) :]
        engine.submit(make_request(case, tuple(prompt), len(expected[case])))
    assert {name: result.token_ids for name, result in drain(engine).items()} == expected


@given(
    num_blocks=st.integers(3, 10),
    max_num_seqs=st.integers(1, 5),
    max_step_tokens=st.integers(1, 30),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.integers(0, 15)),
            st.tuples(st.just("abort"), st.integers(0, 15)),
            st.tuples(st.just("step"), st.integers(1, 5)),
        ),
        max_size=25,
    ),
)
@settings(max_examples=40)
def test_any_history_of_requests(
    num_blocks: int, max_num_seqs: int, max_step_tokens: int, moves: list[tuple[str, int]]
) -> None:
    engine = tiny_engine(REFERENCE.model, num_blocks, 4, max_num_seqs, max_step_tokens)
    requests = {request.request_id: request for request in mixed_requests()}
    results: dict[str, Collected] = {}
    submitted: set[str] = set()
    for kind, number in moves:
        name = f"r{number}"
        if kind == "submit" and name not in submitted:
            engine.submit(requests[name])
            submitted.add(name)
        elif kind == "abort":
            output = engine.abort(name)
            collect([output] if output else [], results)
        elif kind == "step":
            for _ in range(number):
                collect(engine.step() if engine.has_work else [], results)
        engine.check_integrity()
    for _ in range(5000):
        if engine.has_work:
            collect(engine.step(), results)
    check_idle(engine)
    assert set(results) == submitted
    for name in submitted:
        last, tokens, expected = results[name].last, results[name].token_ids, ORACLE[name]
        assert last is not None
        assert last.finish_reason in (FinishReason.LENGTH, FinishReason.ABORT)
        whole = last.finish_reason is FinishReason.LENGTH
        assert tokens == (expected if whole else expected[: len(tokens)])


ORACLE = {request.request_id: expected_tokens(REFERENCE, request) for request in mixed_requests()}


def test_eos_ends_a_request_and_is_its_last_token() -> None:
    free = ORACLE["r5"]
    eos = free[2]
    request = next(r for r in mixed_requests() if r.request_id == "r5")
    engine = tiny_engine(REFERENCE.model)
    engine.submit(replace(request, stop=replace(request.stop, eos_token_ids=frozenset({eos}))))
    result = drain(engine)["r5"]
    assert result.token_ids == free[: free.index(eos) + 1]
    assert result.last is not None
    assert (result.last.finish_reason, result.last.stop_token_id) == (FinishReason.STOP, eos)
    check_idle(engine)


def test_each_sequence_index_has_a_stream_of_its_own() -> None:
    request = make_request(max_tokens=12, sampling=SamplingParams(temperature=1.0, seed=9))
    engine = tiny_engine(REFERENCE.model)
    for index in range(3):
        engine.submit(replace(request, request_id=str(index), sequence_index=index))
    batch = REFERENCE.generate(torch.tensor([request.prompt_ids] * 3), 12, 1.0, 0, 1.0, seed=9)
    results = drain(engine)
    assert [results[str(i)].token_ids for i in range(3)] == batch[:, 3:].tolist()


@pytest.mark.parametrize(
    "error", [ExpertsLostError("experts of rank 1 are lost", (1,)), RuntimeError("boom")]
)
def test_a_failing_step_ends_only_the_requests_in_it(error: Exception) -> None:
    def fail_second(number: int, _step: Step) -> None:
        if number == 2:
            raise error

    engine = engine_over(ScriptedRunner(fail_second), max_num_seqs=2)
    for name in "abc":
        engine.submit(make_request(name, max_tokens=3))
    results: dict[str, Collected] = {}
    collect(engine.step(), results)
    collect(engine.step(), results)
    for name in "ab":
        last = results[name].last
        assert last is not None
        assert last.timings is not None
        assert last.finish_reason is None
        if isinstance(error, ExpertsLostError):
            assert last.error is error
        else:
            assert isinstance(last.error, EngineError)
            assert "boom" not in str(last.error), "what nobody foresaw is for the log"
        assert results[name].token_ids == [3], "tokens of steps before stay valid"
    engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    results |= drain(engine)
    assert results["c"].token_ids == [3, 4, 5]
    check_idle(engine)


def test_a_request_in_the_middle_of_its_prompt_fails_with_its_step() -> None:
    def fail(_number: int, _step: Step) -> None:
        raise ExpertsLostError("experts are lost")

    engine = engine_over(ScriptedRunner(fail), max_step_tokens=4)
    engine.submit(make_request("r", (1,) * 9, 3))
    assert [output.is_last for output in engine.step()] == [True]
    check_idle(engine)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_request_whose_numbers_break_ends_alone_and_poisons_nobody(value: float) -> None:
    weights = random_weights(TINY)
    weights.shared["embedding.weight"][7] = value
    engine = tiny_engine(build_model(TINY, weights), num_blocks=6, max_step_tokens=9)
    requests = [make_request("a", (1, 2, 3), 10), make_request("b", (4, 5), 10)]
    requests = [replace(r, sampling=replace(GREEDY, seed=1)) for r in requests]
    expected = {
        r.request_id: expected_tokens(AssembledModel(build_model(TINY, weights)), r) for r in requests
    }
    assert all(7 not in tokens for tokens in expected.values()), "choose other prompts"
    engine.submit(requests[0])
    for number in range(3):
        # Fills blocks that the others get afterwards.
        engine.submit(make_request(f"bad{number}", (7,) * 11, 5, SamplingParams(1.0, 5, 0.9, 0.1)))
    engine.submit(requests[1])
    results = drain(engine)
    for number in range(3):
        last = results[f"bad{number}"].last
        assert last is not None
        assert isinstance(last.error, NumericError)
        assert results[f"bad{number}"].token_ids == []
    for name, tokens in expected.items():
        assert results[name].token_ids == tokens
    check_idle(engine)


@pytest.mark.parametrize(
    ("prompt_len", "max_tokens", "overflow", "fits"),
    [
        (3, 5, STOP, True),
        (3, 6, STOP, False),
        (3, 5, SLIDE, True),
        (7, 2, STOP, False),
        (9, 1, SLIDE, False),
        (11, 1, STOP, False),
    ],
)
def test_a_request_larger_than_the_cache_is_refused(
    prompt_len: int, max_tokens: int, overflow: ContextOverflow, fits: bool
) -> None:
    engine = engine_over(CountingRunner(), num_blocks=2, block_size=4)
    request = make_request("r", (1,) * prompt_len, max_tokens, overflow=overflow)
    if fits:
        engine.submit(request)
        assert len(drain(engine)["r"].token_ids) == max_tokens
    else:
        with pytest.raises(CapacityError, match="8"):
            engine.submit(request)
    check_idle(engine)


@pytest.mark.parametrize(
    ("prompt", "rules"),
    [
        ((), {}),
        ((1,) * 12, {"context_overflow": STOP}),
        ((1,) * 40, {"context_overflow": STOP}),
        ((1,), {"max_tokens": 0}),
    ],
)
def test_a_request_that_can_have_no_token_is_refused(prompt: tuple[int, ...], rules: dict[str, Any]) -> None:
    engine = engine_over(CountingRunner())
    stop = replace(StopRules(max_tokens=5, context_overflow=SLIDE), **rules)
    with pytest.raises(UserError):
        engine.submit(Request("r", prompt, GREEDY, stop))
    check_idle(engine)


def test_abort_in_every_state() -> None:
    engine = engine_over(CountingRunner(), num_blocks=3, max_num_seqs=2, max_step_tokens=4)
    assert engine.abort("unknown") is None
    for name in ("running", "preempted", "waiting"):
        engine.submit(make_request(name, (1, 2, 3), 9))
    while not engine.stats().num_preemptions:
        engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 2)
    for name in ("preempted", "running", "waiting"):
        output = engine.abort(name)
        assert output is not None
        assert (output.request_id, output.finish_reason) == (name, FinishReason.ABORT)
        assert output.timings is not None
        assert engine.abort(name) is None
        engine.check_integrity()
    check_idle(engine)


def test_abort_in_the_middle_of_a_prompt() -> None:
    engine = engine_over(CountingRunner(), max_step_tokens=2)
    engine.submit(make_request("r", tuple(range(9)), 3))
    assert engine.step() == []
    assert engine.abort("r") is not None
    check_idle(engine)


def test_an_id_can_be_used_again_at_once() -> None:
    engine = engine_over(CountingRunner())
    engine.submit(make_request("r", (1, 2, 3), 9))
    engine.step()
    engine.abort("r")
    engine.submit(make_request("r", (1,), 2))
    assert drain(engine)["r"].token_ids == [1, 2]


def test_timings_are_in_order() -> None:
    engine = engine_over(CountingRunner(), max_num_seqs=1)
    for name in "ab":
        engine.submit(make_request(name, max_tokens=3))
    lasts = {name: result.last for name, result in drain(engine).items()}
    for last in lasts.values():
        assert last is not None
        assert last.timings is not None
        t = last.timings
        assert 0 <= t.queue_time <= t.time_to_first_token <= t.total_time
    first, second = (_timings(lasts[name]) for name in "ab")
    assert second.queue_time >= first.total_time - first.queue_time - 1e-3


def _timings(output: Output | None) -> Any:
    assert output is not None
    return output.timings


def test_a_stopped_engine_ends_all_and_takes_no_more() -> None:
    engine = engine_over(CountingRunner(), max_num_seqs=1)
    for name in "ab":
        engine.submit(make_request(name))
    engine.step()
    error = EngineError("broken")
    outputs = engine.stop(error)
    assert {(output.request_id, output.error) for output in outputs} == {("a", error), ("b", error)}
    assert not engine.has_work
    with pytest.raises(EngineError, match="broken"):
        engine.submit(make_request("c"))
