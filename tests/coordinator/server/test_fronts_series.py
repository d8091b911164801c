"""Metrics know no caller: ten thousand of them, each with its own ids, keys and paths, add not one series."""

import random
import re
from typing import Any

import grpc
import httpx

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.telemetry.metrics import Metrics, MetricSources
from coordinator.api.validation.request import ValidRequest
from coordinator.engine.messages.metrics import MetricsSnapshot
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.made_requests import resolved
from tests.coordinator.fronts_fakes import World, make_fronts, open_fronts, opening

pytestmark = BOTH_ENGINES

NUM_CALLERS, NUM_CALLS = 10_000, 50


def series(text: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def opened() -> Metrics:
    metrics = Metrics()
    metrics.open(
        "tiny", 32, MetricSources(EngineStats, lambda: ModelStatus(()), WorkersStatus, 16, no_counts)
    )
    return metrics


async def no_counts() -> MetricsSnapshot:
    return MetricsSnapshot()


def of_a_random_caller(metrics: Metrics, valid: ValidRequest, rng: random.Random) -> None:
    name = f"{rng.getrandbits(64):016x}"
    caller = Caller(name, peer=f"ipv4:{name}", key_id=name, trace_parent={"traceparent": name})
    facts = Facts(valid, "tiny", 0, 3, {0: "length"}, 0.1, 0.2, 0.5, [(0.05, 2)])
    metrics.requests.finished(caller, facts, None, cancelled=False)
    metrics.requests.finished(caller, Facts(), None, cancelled=True)
    metrics.fronts.http_observed("unknown", name.upper(), 404, 0.0)


def test_ten_thousand_callers_make_no_series() -> None:
    metrics, valid, rng = opened(), resolved(""), random.Random(1)
    of_a_random_caller(metrics, valid, rng)
    before = series(metrics.render()[0].decode())
    for _ in range(NUM_CALLERS):
        of_a_random_caller(metrics, valid, rng)
    text = metrics.render()[0].decode()
    assert series(text) == before
    assert (
        f'expertmesh_request_success_total{{finished_reason="length",model_name="tiny"}} {NUM_CALLERS + 1}'
        in text
    )


async def test_calls_with_anything_in_them_make_no_series() -> None:
    """Over real ports, through all that counts."""
    fronts, rng = make_fronts(), random.Random(2)
    async with opening(fronts) as engine:
        await open_fronts(fronts, engine, World())
        assert fronts.http is not None
        async with (
            httpx.AsyncClient(base_url=f"http://{fronts.http.address}", verify=False) as http,
            grpc.aio.insecure_channel(fronts.grpc.address) as channel,
        ):
            for _ in range(2):
                await one_of_each(channel, http, rng)
                # The request for them is counted as well, once it is over.
                await http.get("/metrics")
            before = series((await http.get("/metrics")).text)
            for _ in range(NUM_CALLS):
                await one_of_each(channel, http, rng)
            text = (await http.get("/metrics")).text
    assert series(text) == before
    assert len(before) > 20
    (count,) = re.findall(r'http_requests_total\{handler="/v1/completions",.*status="400"\} (\S+)', text)
    assert float(count) == NUM_CALLS + 2


async def one_of_each(channel: grpc.aio.Channel, http: httpx.AsyncClient, rng: random.Random) -> None:
    name = f"{rng.getrandbits(64):016x}"
    metadata = (("x-request-id", name), ("user-agent", name), ("x-anything", name), ("x-" + name, name))
    stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
    await stub.Generate(pb.GenerateRequest(text=name, model=name), metadata=metadata).code()
    unknown: Any = channel.unary_unary(f"/{name}.{name}/{name}")
    await unknown(b"", metadata=metadata).code()
    headers = {"x-request-id": name, "user-agent": name, "x-" + name: name}
    body = {"prompt": name, "request_id": name, "user": name, name: name, "top_p": 2}
    await http.post("/v1/completions", json=body, headers=headers)
    await http.request(name.upper(), f"/{name}", headers=headers)
    await http.get(f"/v1/models/{name}?{name}", headers=headers)
