"""What requests want besides tokens: logprobs, prompt logprobs, routing. Against the bare model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coordinator.engine.messages.output import FinishReason, RoutedExperts, TokenLogprobs
from coordinator.engine.messages.request import Request, Returns, StopRules
from moe_model.layers.router import Routing
from moe_model.sampling.params import SamplingParams
from tests.models import TINY, Collected, drain, make_request, random_reference, tiny_engine

REFERENCE = random_reference(replace(TINY, max_seq_len=24))
PROMPT = tuple(range(3, 14))
SIZES = [{}, {"max_step_tokens": 4}, {"num_blocks": 6, "max_step_tokens": 5}]


def run(request: Request, **sizes: Any) -> Collected:
    """Among others, which share its beginning and compete for the cache."""
    engine = tiny_engine(REFERENCE.model, **sizes)
    engine.submit(make_request("before", PROMPT, 3))
    engine.submit(request)
    engine.submit(replace(make_request("after", (*PROMPT[:9], 1), 5), num_sequences=2))
    results = drain(engine)
    engine.check_integrity()
    return results[request.request_id]


def raw_logprobs(token_ids: list[int]) -> Tensor:
    """[S, V], of a whole sequence within the window."""
    logits_1SV, _ = REFERENCE.forward(torch.tensor([token_ids]))
    return logits_1SV[0].log_softmax(-1)


def routed(token_ids: list[int]) -> list[list[list[int]]]:
    """[token][layer][k]."""
    layers: list[Tensor] = []

    def observe(_layer: int, routing: Routing) -> None:
        layers.append(routing.expert_ids_TK)

    REFERENCE._hidden(torch.tensor([token_ids]), observe=observe)
    ids: list[list[list[int]]] = torch.stack(layers, dim=1).tolist()
    return ids


def rows(traces: list[RoutedExperts]) -> dict[int, list[list[int]]]:
    """By position; a position told twice is an error."""
    found: dict[int, list[list[int]]] = {}
    for trace in traces:
        for offset, ids in enumerate(trace.ids_TLK.tolist()):
            assert trace.first_position + offset not in found
            found[trace.first_position + offset] = ids
    return found


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0), SamplingParams(1.3, top_k=5, seed=4)])
def test_logprobs_are_of_the_raw_distribution(sizes: dict[str, int], sampling: SamplingParams) -> None:
    request = replace(make_request("r", PROMPT, 6, sampling), returns=Returns(logprobs=3))
    result = run(request, **sizes)
    scores = [score for output in result.outputs for score in output.logprobs]
    assert [score.token_id for score in scores] == result.token_ids
    raw_SV = raw_logprobs([*PROMPT, *result.token_ids])
    for score, raw_V in zip(scores, raw_SV[len(PROMPT) - 1 :], strict=False):
        assert score.logprob == pytest.approx(raw_V[score.token_id].item(), abs=1e-5)
        assert score.rank == int((raw_V > raw_V[score.token_id]).sum()) + 1
        best = raw_V.topk(3)
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert [logprob for _, logprob in score.top] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("max_tokens", [0, 4])
def test_prompt_logprobs_come_once_and_before_the_first_token(sizes: dict[str, int], max_tokens: int) -> None:
    request = replace(make_request("r", PROMPT, max_tokens), returns=Returns(prompt_logprobs=2))
    result = run(request, **sizes)
    scores: list[TokenLogprobs] = []
    seen_token = False
    for output in result.outputs:
        if output.prompt is not None:
            assert not seen_token
            scores += output.prompt.logprobs
        seen_token = seen_token or bool(output.token_ids)
    assert [score.token_id for score in scores] == list(PROMPT[1:])
    raw_SV = raw_logprobs(list(PROMPT))
    for score, raw_V in zip(scores, raw_SV, strict=False):
        assert score.logprob == pytest.approx(raw_V[score.token_id].item(), abs=1e-5)
        assert len(score.top) == 2
    assert len(result.token_ids) == max_tokens
    assert result.last is not None
    assert result.last.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_token_that_goes_through_the_model_is_traced_once(sizes: dict[str, int]) -> None:
    request = replace(make_request("r", PROMPT, 6), returns=Returns(routed_experts=True))
    result = run(request, **sizes)
    prompt = rows([t for o in result.outputs if o.prompt is not None for t in o.prompt.routed_experts])
    output = rows([t for o in result.outputs for t in o.routed_experts])
    expected = routed([*PROMPT, *result.token_ids])
    assert sorted(prompt) == list(range(len(PROMPT)))
    assert sorted(output) == list(range(len(PROMPT), len(PROMPT) + 5)), "the last token is never fed back"
    for position, ids in {**prompt, **output}.items():
        assert ids == expected[position], position


def test_siblings_trace_what_they_generate_and_the_first_the_prompt_too() -> None:
    request = make_request("r", PROMPT, 3, SamplingParams(1.0, seed=3))
    engine = tiny_engine(REFERENCE.model)
    engine.submit(replace(request, num_sequences=2, returns=Returns(logprobs=0, routed_experts=True)))
    results = drain(engine)
    second = results["r#1"]
    assert all(output.prompt is None for output in second.outputs)
    expected = routed([*PROMPT, *second.token_ids])
    traces = rows([t for o in second.outputs for t in o.routed_experts])
    assert traces == {p: expected[p] for p in range(len(PROMPT), len(PROMPT) + 2)}
    assert [s.token_id for o in second.outputs for s in o.logprobs] == second.token_ids


def test_a_context_that_slides_traces_every_token_once() -> None:
    request = replace(make_request("r", PROMPT, 30), returns=Returns(routed_experts=True))
    result = run(request)
    output = rows([t for o in result.outputs for t in o.routed_experts])
    assert sorted(output) == list(range(len(PROMPT), len(PROMPT) + 29))


def test_scoring_takes_the_place_of_a_first_token() -> None:
    rules = StopRules(max_tokens=0)
    request = Request("r", PROMPT, SamplingParams(temperature=0), rules, returns=Returns(prompt_logprobs=0))
    result = run(request)
    assert result.token_ids == []
    assert result.last is not None
    assert result.last.timings is not None
