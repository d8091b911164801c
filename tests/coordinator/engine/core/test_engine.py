"""Engine: equal to the oracle whatever else runs, and nothing lost whatever happens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.errors import CapacityError, EngineError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import FinishReason, Output, Stop
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from moe_model import AssembledModel, ModelConfig
from moe_model.errors import UserError
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.examples import examples
from tests.models import (
    TINY,
    Collected,
    collect,
    drain,
    expected_tokens,
    make_request,
    random_model,
    random_reference,
    tiny_engine,
)
from tests.native import KERNELS

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


def _last(collected: Collected) -> Output:
    assert collected.last is not None
    return collected.last


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
@pytest.mark.parametrize("choice", KERNELS)
def test_mixed_concurrent_requests_equal_the_oracle(sizes: dict[str, int], choice: KernelChoice) -> None:
    kernels, requests = choose_kernels(choice, "cpu"), mixed_requests()
    engine = tiny_engine(random_model(kernels=kernels), kernels=kernels, **sizes)  # type: ignore[arg-type]
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
        replace(TINY, n_heads=1, n_kv_heads=0, head_dim=0, d_model=6, n_experts=7, top_k=3, max_seq_len=9),
    ],
    ids=str,
)
@pytest.mark.parametrize("choice", KERNELS)
def test_other_shapes_equal_the_oracle(config: ModelConfig, choice: KernelChoice) -> None:
    reference, kernels = random_reference(config, seed=5), choose_kernels(choice, "cpu")
    requests = [make_request(f"r{n}", prompt, 14) for n, prompt in enumerate(PROMPTS)]
    model = random_model(config, seed=5, kernels=kernels)
    engine = tiny_engine(model, num_blocks=12, max_step_tokens=11, kernels=kernels)
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
@settings(max_examples=examples(40))
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
            collect(engine.abort(name), results)
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
    assert (result.last.finish_reason, result.last.stop) == (FinishReason.STOP, Stop(eos))
    check_idle(engine)


def test_each_sequence_index_has_a_stream_of_its_own() -> None:
    sampling = SamplingParams(temperature=1.0, seed=9)
    request = replace(make_request(max_tokens=12, sampling=sampling), num_sequences=3)
    engine = tiny_engine(REFERENCE.model)
    engine.submit(request)
    batch = REFERENCE.generate(torch.tensor([request.prompt_ids] * 3), 12, 1.0, 0, 1.0, seed=9)
    results = drain(engine)
    assert [results[name].token_ids for name in ("r", "r#1", "r#2")] == batch[:, 3:].tolist()
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
    assert engine.abort("unknown") == []
    for name in ("running", "preempted", "waiting"):
        engine.submit(make_request(name, (1, 2, 3), 9))
    while not engine.stats().num_preemptions:
        engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (1, 2)
    for name in ("preempted", "running", "waiting"):
        (output,) = engine.abort(name)
        assert (output.request_id, output.finish_reason) == (name, FinishReason.ABORT)
        assert output.timings is not None
        assert engine.abort(name) == []
        engine.check_integrity()
    check_idle(engine)


def test_abort_in_the_middle_of_a_prompt() -> None:
    engine = engine_over(CountingRunner(), max_step_tokens=2)
    engine.submit(make_request("r", tuple(range(9)), 3))
    assert engine.step() == []
    assert engine.abort("r")
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
    assert {output.request_id: output.failure for output in outputs} == dict.fromkeys("ab", Failure.of(error))
    assert not engine.has_work
    with pytest.raises(EngineError, match="broken"):
        engine.submit(make_request("c"))
