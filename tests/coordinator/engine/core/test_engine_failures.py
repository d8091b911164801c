"""Engine: what fails ends alone, and time limits."""

import math
import time
from dataclasses import replace

import pytest

from coordinator.engine.core.step import Step
from coordinator.engine.messages.errors import ConstraintError, EngineError, StepMemoryError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.request import Returns
from moe_model import AssembledModel
from moe_model.errors import ExpertsLostError, NumericError
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.core.test_engine import check_idle
from tests.coordinator.engine.fakes import CountingRunner, FailingRunner, ScriptedRunner, engine_over
from tests.models import (
    TINY,
    Collected,
    build_model,
    collect,
    drain,
    expected_tokens,
    make_request,
    random_weights,
    tiny_engine,
)

GREEDY = SamplingParams(temperature=0)


def _last(collected: Collected) -> Output:
    assert collected.last is not None
    return collected.last


@pytest.mark.parametrize(
    "error", [ExpertsLostError("experts of rank 1 are lost", (1,)), RuntimeError("boom"), MemoryError()]
)
def test_a_failing_step_ends_only_the_requests_in_it(error: Exception) -> None:
    def fail_second(number: int, step: Step) -> None:
        # Whole, and then each of its two parts.
        if number > 1 and step.chunks[0].sequence.request.request_id in "ab":
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
            assert last.failure == Failure.of(error)
        else:
            assert isinstance(last.error, EngineError)
            assert isinstance(last.error, StepMemoryError) == isinstance(error, MemoryError)
            assert "boom" not in str(last.error), "what nobody foresaw is for the log"
        assert results[name].token_ids == [3], "tokens of steps before stay valid"
    engine.check_integrity()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    results |= drain(engine)
    assert results["c"].token_ids == [3, 4, 5]
    check_idle(engine)


def test_a_request_that_breaks_every_step_ends_alone() -> None:
    def fail(_number: int, step: Step) -> None:
        if any(chunk.sequence.request.request_id == "bad" for chunk in step.chunks):
            raise RuntimeError("boom")

    engine = engine_over(ScriptedRunner(fail))
    for name in ("a", "bad", "b"):
        engine.submit(replace(make_request(name, max_tokens=3), num_sequences=2))
    results = drain(engine)
    assert isinstance(_last(results["bad"]).error, EngineError)
    assert "bad#1" not in results, "one error for the whole request"
    for name in ("a", "a#1", "b", "b#1"):
        assert results[name].token_ids == [3, 4, 5]
    check_idle(engine)


def test_a_sequence_that_breaks_ends_its_siblings_with_it() -> None:
    engine = engine_over(FailingRunner(lambda sequence: sequence.index == 1, NumericError("broken")))
    engine.submit(replace(make_request(max_tokens=3), num_sequences=3))
    (output,) = engine.step()
    assert isinstance(output.error, NumericError)
    check_idle(engine)


def test_what_fails_as_data_costs_the_others_no_second_run() -> None:
    error = ConstraintError("too complex")
    runner = FailingRunner(lambda sequence: sequence.request.request_id == "bad", error)
    engine = engine_over(runner)
    for name in ("a", "bad", "b"):
        engine.submit(make_request(name, max_tokens=2))
    results = drain(engine)
    assert _last(results["bad"]).failure == Failure.of(error)
    assert results["a"].token_ids == results["b"].token_ids == [3, 4]
    assert [len(step.chunks) for step in runner.steps] == [3, 2]
    check_idle(engine)


def test_a_prompt_that_breaks_in_its_middle_ends_there() -> None:
    runner = FailingRunner(lambda sequence: sequence.num_computed >= 4, NumericError("broken"))
    engine = engine_over(runner, max_step_tokens=4)
    engine.submit(make_request("r", (1,) * 11, 1))
    assert isinstance(_last(drain(engine)["r"]).error, NumericError)
    assert len(runner.steps) == 2
    check_idle(engine)


@pytest.mark.parametrize("prompt_logprobs", [None, 2])
def test_scoring_what_is_not_a_number_is_an_error(prompt_logprobs: int | None) -> None:
    weights = random_weights(TINY)
    weights.shared["embedding.weight"][7] = math.nan
    engine = tiny_engine(build_model(TINY, weights), max_step_tokens=4)
    request = make_request("r", (1, 2, 3, 7, 4, 5, 6, 1, 2), 0)
    engine.submit(replace(request, returns=Returns(prompt_logprobs=prompt_logprobs)))
    assert isinstance(_last(drain(engine)["r"]).error, NumericError)
    check_idle(engine)


@pytest.mark.parametrize("max_num_seqs", [1, 8])
def test_time_is_up_for_those_that_run_and_those_that_wait(max_num_seqs: int) -> None:
    engine = engine_over(CountingRunner(), max_num_seqs=max_num_seqs)
    for name in ("late", "later"):
        request = replace(make_request(name, max_tokens=9), num_sequences=2)
        engine.submit(replace(request, stop=replace(request.stop, time_limit=3600.0)))
    engine.submit(make_request("free", max_tokens=2))
    results: dict[str, Collected] = {}
    collect(engine.step(), results)
    begun = results["late"].token_ids
    assert begun == [3]
    for sequences in engine._requests.values():
        for sequence in sequences:
            object.__setattr__(sequence.request, "arrival_time", time.monotonic() - 3601)
    while engine.has_work:
        collect(engine.step(), results)
    for name in ("late", "late#1", "later", "later#1"):
        last = _last(results[name])
        assert last.finish_reason is FinishReason.TIME_LIMIT
        assert last.timings is not None
    assert results["late"].token_ids == begun, "what was generated stays"
    assert results["free"].token_ids == [3, 4]
    check_idle(engine)


def test_whoever_has_gone_is_forgotten() -> None:
    runner = CountingRunner()
    engine = engine_over(runner)
    engine.submit(replace(make_request("a", max_tokens=2), num_sequences=2))
    engine.submit(make_request("b", max_tokens=9))
    engine.step()
    engine.abort("b")
    drain(engine)
    assert sorted(runner.forgotten) == [0, 1, 2]


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
