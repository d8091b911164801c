"""One request, asked over gRPC and over HTTP, whole and as a stream: four times the same answer, to the bit.

Over a real engine and the bundled model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import text_format

from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.api.answers import chunks_of, joined, joined_chunks
from tests.coordinator.api.grammar import check_grammar
from tests.integration.processes import Server
from tests.integration.same_requests import REQUESTS, Asked

FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
# A token's text, its logprob, and those of the best by text.
Score = tuple[str, float | None, dict[str, float] | None]


@dataclass(frozen=True)
class Clients:
    """Of one server."""

    stub: Any
    http: httpx.Client


@pytest.fixture(scope="module")
def clients(demo_server: Server) -> Iterator[Clients]:
    with (
        grpc.insecure_channel(demo_server.address) as channel,
        httpx.Client(base_url=f"http://{demo_server.address_of('http')}", timeout=60) as http,
    ):
        yield Clients(generation_pb2_grpc.GenerationServiceStub(channel), http)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", REQUESTS)
def test_four_ways(name: str, clients: Clients) -> None:
    check_four_ways(REQUESTS[name], clients)


def check_four_ways(request: Asked, clients: Clients) -> pb.GenerateResponse:
    """The answer."""
    text, path, body = request
    message = text_format.Parse(text, pb.GenerateRequest(request_id="same"))
    message.response.return_token_ids = message.response.return_prompt_token_ids = True
    body = {**body, "return_token_ids": True, "request_id": "same"}
    # What is left in the prefix cache counts in the usage: the first request puts there what it can.
    clients.stub.Generate(message)
    events = list(clients.stub.GenerateStream(message))
    check_grammar(events, message.sampling.num_sequences or 1)
    whole: pb.GenerateResponse = clients.stub.Generate(message)
    check_same(joined(events), whole)
    posted = clients.http.post(path, json=body)
    assert posted.status_code == 200, posted.text
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = joined_chunks(chunks_of(clients.http.post(path, json={**body, **options}).text))
    answer = posted.json()
    if not message.stopping.max_tokens:
        # Where nothing is generated no chunk says so.
        streamed["choices"][0]["token_ids"] = []
    assert streamed == {name: answer[name] for name in ("choices", "usage")}
    check_body(answer, whole, body)
    stops = body.get("stop", ())
    assert all(choice["stop_reason"] in stops for choice in answer["choices"] if stops), "it did stop there"
    return whole


def check_same(streamed: pb.GenerateResponse, whole: pb.GenerateResponse) -> None:
    """But for the times, and for how the routing is cut."""
    for response in (streamed, whole):
        response.ClearField("timings")
        response.prompt.ClearField("routed_experts")
        for output in response.outputs:
            output.ClearField("routed_experts")
    assert streamed == whole


def check_body(body: dict[str, Any], whole: pb.GenerateResponse, asked: Mapping[str, Any]) -> None:
    usage = whole.usage
    assert body["usage"] == {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
    }
    assert len(body["choices"]) == len(whole.outputs)
    for choice, output in zip(body["choices"], whole.outputs, strict=True):
        echoed = asked.get("echo", False)
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert text == (asked["prompt"] if echoed else "") + output.text
        assert choice["token_ids"] == list(output.token_ids)
        assert choice["prompt_token_ids"] == list(whole.prompt.token_ids)
        assert choice["finish_reason"] == FINISH[output.finish_reason]
        assert choice["stop_reason"] == (output.stop_match.stop_sequence or None)
        logprobs = [*(whole.prompt.logprobs if echoed else ()), *output.logprobs]
        assert logprobs_of(choice["logprobs"]) == [scores_of(each) for each in logprobs]
        if "prompt_logprobs" in asked:
            assert len(choice["prompt_logprobs"]) == len(whole.prompt.logprobs)
            for found, each in zip(choice["prompt_logprobs"], whole.prompt.logprobs, strict=True):
                check_prompt_score(found, each)


def text_of(data: bytes) -> str:
    return data.decode(errors="replace")


def scores_of(each: pb.TokenLogprob) -> Score:
    """By text, as completions show them: the token's own first."""
    if not each.HasField("logprob"):
        return text_of(each.token_bytes), None, None
    top = {text_of(each.token_bytes): each.logprob}
    for one in each.top:
        top.setdefault(text_of(one.token_bytes), one.logprob)
    return text_of(each.token_bytes), each.logprob, top


def logprobs_of(logprobs: dict[str, Any] | None) -> list[Score]:
    if logprobs is None:
        return []
    if "content" not in logprobs:
        columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
        return list(zip(*columns, strict=True))
    found: list[Score] = []
    for each in logprobs["content"]:
        assert text_of(bytes(each["bytes"])) == each["token"]
        top = {each["token"]: each["logprob"]}
        for one in each["top_logprobs"]:
            top.setdefault(one["token"], one["logprob"])
        found.append((each["token"], each["logprob"], top))
    return found


def check_prompt_score(found: dict[str, Any] | None, each: pb.TokenLogprob) -> None:
    if not each.HasField("logprob"):
        assert found is None
        return
    assert found is not None
    expected = {str(one.token_id): one.logprob for one in each.top}
    expected[str(each.token_id)] = each.logprob
    assert {token: entry["logprob"] for token, entry in found.items()} == expected
    assert found[str(each.token_id)]["rank"] == each.rank


def seeded(number: int, **more: Any) -> pb.GenerateRequest:
    message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[2, 100 + number, 300]))
    message.sampling.MergeFrom(pb.SamplingParams(temperature=1.2, seed=number, **more))
    message.stopping.MergeFrom(pb.StoppingParams(max_tokens=8, ignore_eos=True))
    message.response.return_token_ids = True
    return message


def tokens_of(response: pb.GenerateResponse) -> list[list[int]]:
    return [list(output.token_ids) for output in response.outputs]


def test_a_seed_gives_the_same_tokens_in_any_company(clients: Clients) -> None:
    """Alone, and among others of all kinds that begin and end meanwhile."""
    requests = [seeded(number, num_sequences=1 + number % 2) for number in range(6)]
    alone = [tokens_of(clients.stub.Generate(message)) for message in requests]
    assert len({tuple(ids) for found in alone for ids in found}) == 9, "each has its own"
    others = [seeded(900 + number, top_k=5, presence_penalty=1) for number in range(6)]
    for other, length in zip(others, (1, 3, 5, 9, 12, 20), strict=True):
        other.stopping.max_tokens = length
    calls = [
        clients.stub.Generate.future(message)
        for pair in zip(requests, others, strict=True)
        for message in pair
    ]
    together = [tokens_of(call.result()) for call in calls]
    assert together[::2] == alone
