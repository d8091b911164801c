"""Every row of the error table as HTTP tells it, and what never becomes a request."""

import json
from collections.abc import AsyncIterator

import pytest

from coordinator.api.http.errors import error_response
from coordinator.api.security.api_keys import ApiKeys
from coordinator.api.security.auth import KeyAuthenticator
from coordinator.api.shared.errors import TABLE, ApiError, Reason
from coordinator.engine.messages.errors import CapacityError, EngineError, StepMemoryError
from moe_model.errors import ExpertsLostError
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import FakeEngine, served_model
from tests.coordinator.api.http_fakes import Http

pytestmark = BOTH_ENGINES

SECRET = "k" * 32


@pytest.mark.parametrize("reason", list(Reason))
def test_every_row(reason: Reason) -> None:
    response = error_response(ApiError.of(reason, "what happened", field="sampling.top_p"))
    row, error = TABLE[reason], json.loads(bytes(response.body))["error"]
    assert response.status_code == row.http_status
    assert (error["type"], error["code"], error["param"]) == (row.http_type, row.http_code, "top_p")
    assert isinstance(error["code"], str)
    assert error["message"].endswith("top_p: what happened")
    assert ("retry-after" in response.headers) == (row.http_status in (429,) or row.retry_after is not None)
    assert response.headers.get("x-should-retry") == (None if row.should_retry is None else "false")
    assert ("www-authenticate" in response.headers) == (row.http_status == 401)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CapacityError("x"), 400, "context_length_exceeded"),
        (ExpertsLostError("x"), 503, "expert_worker_lost"),
        (StepMemoryError("x"), 503, "out_of_memory"),
        (EngineError("/secret/path"), 500, "internal"),
        (ValueError("/secret/path"), 500, "internal"),
    ],
)
async def test_what_the_engine_raises(error: BaseException, status: int, code: str) -> None:
    response = await Http(FakeEngine(error)).complete()
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert "secret" not in response.text
    if status == 500:
        message = response.json()["error"]["message"]
        assert message == f"internal error, request {response.headers['x-request-id']}"


async def test_starting_draining_full_and_unknown() -> None:
    starting = await Http(ready=False).complete()
    assert (starting.status_code, starting.headers["retry-after"]) == (503, "1")
    http = Http()
    http.gate.drain()
    assert (await http.complete()).json()["error"]["code"] == "not_ready"
    busy = Http(max_requests=2)
    busy.gate.admission.add_sequences(1)
    full = await busy.complete(n=2, temperature=1)
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    never = await busy.complete(n=3, temperature=1)
    assert (never.status_code, never.json()["error"]["param"]) == (400, "n")
    unknown = await Http().complete(model="other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


async def test_keys_guard_everything_but_health() -> None:
    http = Http(authenticator=KeyAuthenticator(ApiKeys.from_secret(SECRET)))
    async with http.client() as client:
        for method, path in (
            ("POST", "/v1/completions"),
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/tiny"),
            ("POST", "/tokenize"),
            ("POST", "/detokenize"),
            ("GET", "/tokenizer_info"),
            ("GET", "/metrics"),
            ("GET", "/version"),
            ("GET", "/no/such/path"),
            ("DELETE", "/v1/models"),
        ):
            response = await client.request(method, path)
            assert response.status_code == 401, (method, path)
        no_scheme = await client.get("/v1/models", headers={"authorization": SECRET})
        assert no_scheme.status_code == 401
        wrong = await client.get("/v1/models", headers={"authorization": "Bearer " + "w" * 32})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
        for path in ("/health", "/readyz", "/livez"):
            assert (await client.get(path)).status_code == 200
        right = {"authorization": f"Bearer {SECRET}"}
        assert (await client.get("/v1/models", headers=right)).status_code == 200
        assert (await client.get("/no/such/path", headers=right)).status_code == 404


async def test_unknown_paths_and_verbs() -> None:
    async with Http().client() as client:
        missing, wrong = await client.get("/nope"), await client.get("/v1/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"prompt": "x", "top_p": NaN}', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        (b'{"prompt": 5}', "prompt"),
        (b'{"prompt": [5, "x"]}', "prompt[0]"),
        (b'{"prompt": [true]}', "prompt[0]"),
        (b'{"prompt": [-1]}', "prompt[0]"),
        (b'{"prompt": []}', "prompt"),
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"prompt": "x", "max_tokens": "5"}', "max_tokens"),
        (b'{"prompt": "x", "max_tokens": true}', "max_tokens"),
        (b'{"prompt": "x", "max_tokens": 1.5}', "max_tokens"),
        (b'{"prompt": "x", "max_tokens": -1}', "max_tokens"),
        (b'{"prompt": "x", "temperature": "hot"}', "temperature"),
        (b'{"prompt": "x", "temperature": 1e400}', "temperature"),
        (b'{"prompt": "x", "stop": 5}', "stop"),
        (b'{"prompt": "x", "stop": [5]}', "stop"),
        (b'{"prompt": "x", "stop": "\\ud800"}', "stop"),
        (b'{"prompt": "x", "stop": ["\\ud800"]}', "stop"),
        (b'{"prompt": "x", "guided_regex": "\\ud800"}', "guided_regex"),
        (b'{"prompt": "x", "guided_json": "\\ud800"}', "guided_json"),
        (b'{"prompt": "x", "guided_choice": ["a", "\\ud800"]}', "guided_choice"),
        (b'{"prompt": "x", "logit_bias": {"a": 1}}', "logit_bias"),
        (b'{"prompt": "x", "logit_bias": {"999": 1}}', "logit_bias[999]"),
        (b'{"prompt": "x", "logit_bias": {"4294967296": 1}}', "logit_bias"),
        (b'{"prompt": "x", "logit_bias": {"00000000000099999999999": 1}}', "logit_bias"),
        (b'{"prompt": "x", "logit_bias": {"%s": 1}}' % (b"0" * 5000), "logit_bias"),
        (b'{"prompt": "x", "stream_options": {}}', "stream_options"),
        (b'{"prompt": "x", "response_format": {"type": "xml"}}', "response_format"),
        (b'{"prompt": "x", "tools": [{}]}', "tools"),
    ],
)
async def test_bodies_that_are_none(body: bytes, param: str | None) -> None:
    async with Http().client() as client:
        response = await client.post("/v1/completions", content=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize("is_declared", [True, False])
async def test_a_body_that_is_too_large_is_not_read_to_its_end(is_declared: bool) -> None:
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1 << 20
            yield b"x" * (1 << 20)

    headers = {"content-length": str(64 << 20)} if is_declared else {}
    async with Http().client() as client:
        response = await client.post("/v1/completions", content=parts(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_fields_that_nobody_knows_are_named_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="coordinator.api")
    http = Http(model=served_model())
    for _ in range(3):
        assert (await http.complete(novel=1, user="me", store=False)).status_code == 200
    assert [record.getMessage() for record in caplog.records if "unknown field" in record.getMessage()] == [
        "ignored the unknown field 'novel'"
    ]


async def test_strict_fields_refuse_what_nobody_knows_and_take_what_says_nothing_about_the_answer() -> None:
    http = Http(strict_fields=True)
    error = (await http.complete(temprature=0)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "temprature")
    assert (await http.complete(user="me", store=True, metadata={"a": "b"})).status_code == 200
