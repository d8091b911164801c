"""Requests of several prompts: taken whole or not at all, and told of as what they are."""

import asyncio

import pytest

from coordinator.engine.messages.request import Request
from moe_model.errors import ExpertsLostError
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, Script, ends_at_once, last, tokens
from tests.coordinator.api.http_fakes import Http

pytestmark = BOTH_ENGINES

OWN = {"request_id": "mine"}


def per_prompt(**scripts: Script) -> FakeEngine:
    """A script for each part, by its number as a word."""
    by_part = {"mine/0": scripts["first"], "mine/1": scripts["second"]}
    return FakeEngine(play=lambda request: by_part[request.request_id](request))


async def test_all_prompts_are_admitted_or_none() -> None:
    http = Http(ends_at_once(), max_requests=8)
    http.gate.admission.add_sequences(1)
    response = await http.complete(prompt=["a"] * 4, n=2, temperature=1)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
    assert http.engine.requests == []
    assert [how for _, how in http.ended.seen] == ["QUEUE_FULL"], "one request, one refusal"
    fits = await http.complete(prompt=["a"] * 3, n=2, temperature=1, max_tokens=1)
    assert fits.status_code == 200
    assert len(http.engine.requests) == 3
    assert http.gate.admission.num_sequences == 1


async def test_more_than_there_ever_is_room_for_is_not_to_be_tried_again() -> None:
    response = await Http(max_requests=8).complete(prompt=["a"] * 9)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_one_invalid_prompt_ends_all_before_any_begins(stream: bool) -> None:
    http = Http()
    response = await http.complete(prompt=["a", "x " * 20_000], stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert http.engine.requests == []


async def test_each_prompt_is_a_part_of_the_callers_request() -> None:
    http = Http()
    assert (await http.post("/v1/completions", {"prompt": ["a", "b"], **OWN})).status_code == 200
    assert [request.request_id for request in http.engine.requests] == ["mine/0", "mine/1"]
    assert http.ended.seen == [("mine/0", "ok"), ("mine/1", "ok")]


async def test_an_id_is_taken_while_any_of_its_prompts_runs() -> None:
    gate = asyncio.Event()
    http = Http(FakeEngine(tokens(40), gate, last(41)))
    body = {"prompt": ["a", "b"], **OWN}
    first = asyncio.ensure_future(http.post("/v1/completions", body))
    await asyncio.wait_for(http.engine.started.wait(), PATIENCE)
    second = await http.post("/v1/completions", body)
    assert (second.status_code, second.headers["x-should-retry"]) == (409, "false")
    gate.set()
    assert (await first).status_code == 200


async def test_the_prompt_that_fails_ends_the_others_and_is_the_one_that_is_told() -> None:
    never = asyncio.Event()

    def fails(request: Request) -> list[BaseException]:
        return [ExpertsLostError("x")]

    http = Http(per_prompt(first=lambda request: [tokens(40), never, last(41)], second=fails))
    response = await http.post("/v1/completions", {"prompt": ["a", "b"], **OWN})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "expert_worker_lost")
    assert http.engine.aborted == ["mine/0"]
    assert http.engine.num_running == 0
    assert {how for _, how in http.ended.seen} == {"EXPERT_WORKER_LOST"}


async def test_what_ends_before_there_is_a_generation_is_told_as_well() -> None:
    http = Http()
    await http.complete(top_p=7)
    await http.complete(tools=[{"type": "function"}])
    assert [how for _, how in http.ended.seen] == ["INVALID_FIELD", "UNSUPPORTED_FEATURE"]
