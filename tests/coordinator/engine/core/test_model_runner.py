"""ModelRunner: tokens of a step against the oracle; a step that runs twice; rows that are not finite."""

import math
from itertools import count

import torch

from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.sequence import Sequence
from moe_model.sampling.draw import sample, uniform
from moe_model.sampling.params import SamplingParams
from tests.cache_sizes import whole_sizes
from tests.models import TINY, build_model, make_cache, make_request, random_reference, random_weights

KEYS = count()


def _setup(max_step_tokens: int = 64) -> tuple[Scheduler, ModelRunner]:
    model = random_reference().model
    scheduler = Scheduler(whole_sizes(20), 8, max_step_tokens)
    return scheduler, ModelRunner(model, make_cache())


def _add(scheduler: Scheduler, name: str, prompt: tuple[int, ...], seed: int) -> Sequence:
    sampling = SamplingParams(temperature=1.0, seed=seed)
    sequence = Sequence(make_request(name, prompt, sampling=sampling), TINY.max_seq_len, 4, key=next(KEYS))
    scheduler.add(sequence)
    return sequence


def test_draws_with_the_counter_of_each_sequence() -> None:
    scheduler, runner = _setup()
    prompts = {"a": (1, 2, 3), "b": (4,), "c": tuple(range(20, 40))}
    for seed, (name, prompt) in enumerate(prompts.items()):
        _add(scheduler, name, prompt, seed)
    step = scheduler.schedule()
    tokens = runner.run(step).token_ids
    assert {chunk.sequence.request.request_id for chunk in step.sampling} == set(prompts)
    for chunk, token in zip(step.sampling, tokens, strict=True):
        request = chunk.sequence.request
        logits_1SV, _ = random_reference().forward(torch.tensor([request.prompt_ids[-12:]]))
        number = uniform(request.sampling.seed, 0, len(request.prompt_ids))
        assert [token] == sample(logits_1SV[:, -1], [request.sampling], [number])


def test_a_step_that_runs_twice_gives_the_same_tokens() -> None:
    scheduler, runner = _setup(max_step_tokens=7)
    for name in "abc":
        _add(scheduler, name, (1, 2, 3, ord(name) % 50), seed=ord(name))
    for _ in range(12):
        step = scheduler.schedule()
        tokens = runner.run(step).token_ids
        assert runner.run(step).token_ids == tokens
        scheduler.update(step, tokens)


def test_a_step_without_a_caught_up_sequence_draws_nothing() -> None:
    scheduler, runner = _setup(max_step_tokens=3)
    _add(scheduler, "a", (1, 2, 3, 4, 5, 6), 0)
    assert runner.run(scheduler.schedule()).token_ids == []


def _poisoned_runner(token: int, value: float) -> ModelRunner:
    """A model whose embedding of one token is not a number."""
    weights = random_weights(TINY)
    weights.shared["embedding.weight"][token] = value
    return ModelRunner(build_model(TINY, weights), make_cache())


def test_only_the_row_that_is_not_finite_draws_none() -> None:
    scheduler, runner = _setup()
    _add(scheduler, "good", (1, 2, 3), 5)
    expected = runner.run(scheduler.schedule()).token_ids
    for value in (math.nan, math.inf):
        scheduler, _ = _setup()
        _add(scheduler, "bad", (1, 7, 3), 5)
        _add(scheduler, "good", (1, 2, 3), 5)
        result = _poisoned_runner(7, value).run(scheduler.schedule())
        assert result.token_ids == [None, *expected]
