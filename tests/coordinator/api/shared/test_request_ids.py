"""Ids of proxies are repeated and logged, and never an error; the request's own id is one of a kind."""

import asyncio
import logging
from typing import Any

import pytest

from coordinator.api.shared.request_ids import GIVEN_IDS, MAX_GIVEN_CHARS, OWN_ID, given_ids
from coordinator.api.shared.request_log import RequestLog
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.both_fronts import Setup, both_fronts
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import (
    PATIENCE,
    FakeEngine,
    Step,
    ends_at_once,
    failure_of,
    generate_request,
    last,
)
from tests.coordinator.api.http_fakes import Http

pytestmark = BOTH_ENGINES

# As load balancers, tracers and frameworks write them.
ODD = (
    "Root=1-67891233-abcdef012345678912345678",
    "{6F9619FF-8B86-D011-B42D-00CF4FC964FF}",
    "dGhpcyBpcyBhbiBpZA==",
    "a/b+c=",
    "two words",
    '"quoted"',
    "é",
    "x" * 2000,
)


@pytest.mark.parametrize("header", GIVEN_IDS)
@pytest.mark.parametrize("value", ODD)
async def test_odd_ids_are_answered(header: str, value: str) -> None:
    http = Http()
    response = await http.post(
        "/v1/completions", {"prompt": [5]}, headers={header: value.encode("latin-1", "replace")}
    )
    assert response.status_code == 200, response.text
    assert response.headers[header] == given_ids([(header, value)])[header]
    own = response.headers[OWN_ID]
    assert response.json()["id"] == f"cmpl-{own}"
    assert value not in own
    assert http.ended.seen == [(own, "ok")]


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/no/such/path", "/v1/models/other"])
async def test_every_answer_has_both(path: str) -> None:
    async with Http().client() as client:
        response = await client.get(path, headers={"x-request-id": ODD[0]})
        assert response.headers["x-request-id"] == ODD[0]
        assert len(response.headers[OWN_ID]) == 36
        alone = await client.get(path)
        assert alone.headers["x-request-id"] == alone.headers[OWN_ID]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [{}, {"top_p": 2}, {"model": "other"}])
async def test_an_answer_has_both_whatever_it_is(stream: bool, body: dict[str, Any]) -> None:
    response = await Http().post(
        "/v1/completions",
        {"prompt": [5], "stream": stream, "request_id": "mine", **body},
        headers={"x-correlation-id": "t"},
    )
    assert response.headers["x-correlation-id"] == "t"
    assert response.headers["x-request-id"] == response.headers[OWN_ID]
    if not body:
        assert response.headers[OWN_ID] == "mine"


async def test_calls_of_one_transaction_run_side_by_side() -> None:
    hold = asyncio.Event()
    scripts: list[list[Step]] = [[last(40)], [hold, last(40)]]
    http = Http(FakeEngine(play=lambda request: scripts.pop()))
    both = {"x-request-id": "t", "x-correlation-id": "t"}
    first = asyncio.ensure_future(http.post("/v1/completions", {"prompt": [5]}, headers=both))
    await asyncio.wait_for(http.engine.started.wait(), PATIENCE)
    second = await http.post("/v1/completions", {"prompt": [5]}, headers=both)
    assert second.status_code == 200
    hold.set()
    assert (await first).status_code == 200
    assert second.json()["id"] != (await first).json()["id"]


@pytest.mark.parametrize("value", ["a b", "é", "a/b", "x" * 129])
async def test_the_body_s_id_is_strict(value: str) -> None:
    response = await Http().complete(request_id=value)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "request_id")


@pytest.mark.parametrize("header", GIVEN_IDS)
@pytest.mark.parametrize("value", [value for value in ODD if value.isascii()])
async def test_odd_ids_in_metadata(header: str, value: str) -> None:
    async with both_fronts(ends_at_once()) as fronts:
        call = fronts.stub.Generate(generate_request(), metadata=((header, value),))
        own = (await call).request_id
        told = dict(await call.initial_metadata())
        assert (told[header], told[OWN_ID]) == (value[:MAX_GIVEN_CHARS], own)
        failed = await failure_of(
            fronts.stub.Generate(generate_request("sampling { top_p: 2 }"), metadata=((header, value),))
        )
        assert failed.fields == ["sampling.top_p"]
        assert failed.trailing_metadata[header] == value[:MAX_GIVEN_CHARS]
        assert failed.trailing_metadata[OWN_ID] == failed.details["RequestInfo"].request_id


@pytest.mark.parametrize(
    "value", ["", "00-zz-zz-00", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 600, "=;,="]
)
async def test_odd_traces_are_no_error(value: str) -> None:
    metadata = (
        ("traceparent", value),
        ("traceparent", value),
        ("tracestate", value),
        ("grpc-trace-bin", b"\x00"),
    )
    async with both_fronts(ends_at_once()) as fronts:
        await fronts.stub.Generate(generate_request(), metadata=metadata)
        headers = [("traceparent", value), ("traceparent", value), ("tracestate", value)]
        response = await fronts.http.post("/v1/completions", json={"prompt": [5]}, headers=headers)
        assert response.status_code == 200


async def test_what_is_logged_is_bounded_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="coordinator.api")
    value = 'a "b"\t\x1b[31m=' + "x" * 5000
    headers = {"x-request-id": value}
    async with both_fronts(ends_at_once(), setup=Setup(observer=RequestLog())) as fronts:
        for body in ({"prompt": [5]}, {"prompt": [5], "top_p": 2}):
            await fronts.http.post("/v1/completions", json=body, headers=headers)
        await fronts.http.get("/v1/models/other", headers=headers)
        await fronts.stub.Tokenize(
            pb.TokenizeRequest(text="a"), metadata=(("x-request-id", 'a "b"=' + "x" * 5000),)
        )
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    for line in lines:
        assert r'x-request-id="a \"b\"' in line
        assert line.isprintable()
        assert len(line) < 2 * MAX_GIVEN_CHARS + 200


def test_the_first_that_says_something() -> None:
    assert given_ids([("x-request-id", " "), ("x-request-id", b"a\r\nb"), ("x-request-id", "c")]) == {
        "x-request-id": "a??b"
    }
    assert given_ids([("x-other", "a")]) == {}
