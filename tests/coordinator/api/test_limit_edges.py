"""Every limit at its edge and one past it, on both fronts."""

import time

import pytest

from coordinator.api.shared.errors import Code
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.fakes import FakeEngine, failure_of, running, served_model
from tests.coordinator.api.http_fakes import Http
from tests.coordinator.api.limit_table import LIMITS, Limit
from tests.coordinator.api.made_requests import refused, resolved

TABLE = pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)


@TABLE
def test_grpc(limit: Limit) -> None:
    model = served_model(max_output_tokens=40)
    resolved(limit.edge, model)
    error = refused(limit.past, model)
    assert error.code is Code.INVALID_ARGUMENT
    assert limit.field in [violation.field for violation in error.violations]


@TABLE
async def test_http(limit: Limit) -> None:
    if limit.edge_json is None or limit.past_json is None:
        pytest.skip("HTTP has no such field")
    http = Http(FakeEngine(), served_model(max_output_tokens=40))
    fine = await http.complete(**limit.edge_json)
    assert fine.status_code == 200 or limit.name.startswith("num_sequences 9"), fine.text
    response = await http.complete(**limit.past_json)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == limit.param
    assert limit.param.partition("[")[0] in response.json()["error"]["message"]


HOSTILE = {
    "a long text": pb.GenerateRequest(text="x " * (2 << 20)),
    "many tokens": pb.GenerateRequest(
        text="x",
        stopping=pb.StoppingParams(max_tokens=2**31),
        sampling=pb.SamplingParams(num_sequences=2**31),
    ),
    "many stops": pb.GenerateRequest(text="x", stopping=pb.StoppingParams(stop_sequences=["a"] * 100_000)),
    "many ids": pb.GenerateRequest(token_ids=pb.TokenIds(ids=[400] * 1_000_000)),
    "many biases": pb.GenerateRequest(
        text="x", sampling=pb.SamplingParams(logit_bias=dict.fromkeys(range(100000), 1.0))
    ),
    "many experts": pb.GenerateRequest(text="x", experts=pb.ExpertSelection(allowed_experts=[9] * 1_000_000)),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_sizes_meant_to_hurt_are_refused_before_they_cost(name: str) -> None:
    async with running() as service:
        await failure_of(service.stub.Generate(HOSTILE["many tokens"]))
        started = time.perf_counter()
        failed = await failure_of(service.stub.Generate(HOSTILE[name]))
        seconds = time.perf_counter() - started
    assert failed.code == "INVALID_ARGUMENT"
    assert failed.details_size <= 4096
    assert seconds < 0.5, "bounded by what it takes to receive it"
