"""Bodies that are odd JSON or none: what is wrong is said, and nothing odd becomes an internal error."""

import json

import pytest

from tests.coordinator.api.http_fakes import Http


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is empty; a JSON object is expected"),
        (b" \n", "the body is empty; a JSON object is expected"),
        (b"\xef\xbb\xbf", "the body is empty; a JSON object is expected"),
        (b"null", "the body is not a JSON object"),
        (b"[1]", "the body is not a JSON object"),
        (b'"x"', "the body is not a JSON object"),
        (b'{"prompt": "x"', "the body is not valid JSON: Expecting ',' delimiter at line 1, column 15"),
        (b'{"prompt": "x",}', "the body is not valid JSON: "),
        (b"{'prompt': 'x'}", "the body is not valid JSON: "),
        (b'{"prompt": "x"} {}', "the body is not valid JSON: Extra data at line 1, column 17"),
        (b'{"prompt": "a\nb"}', "the body is not valid JSON: Invalid control character"),
        (b"prompt=x&max_tokens=5", "the body is not valid JSON: "),
        (b'{"prompt": "x", "top_p": NaN}', "the body has NaN, which is not JSON"),
        (b'{"x": [-Infinity]}', "the body has -Infinity, which is not JSON"),
        (b'{"prompt": "\xff"}', "the body is not UTF-8 (at byte 12)"),
        (b'{"prompt": "\xed\xa0\x80"}', "the body is not UTF-8 (at byte 12)"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "the body has a number of too many digits"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the body is nested too deeply"),
    ],
)
async def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    async with Http().client() as client:
        response = await client.post("/v1/completions", content=data)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)
    assert response.json()["error"]["code"] == "invalid_value"


async def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    """As in the clients' own languages."""
    http = Http()
    async with http.client() as client:
        body = b'{"prompt": [5], "max_tokens": 1, "max_tokens": 2}'
        assert (await client.post("/v1/completions", content=body)).status_code == 200
    assert http.engine.requests[0].stop.max_tokens == 2


@pytest.mark.parametrize("depth", [50, 200, *range(800, 1010, 7)])
@pytest.mark.parametrize("field", ["x", "guided_json", "metadata", "logit_bias", "stop"])
async def test_deep_values_are_no_internal_error(depth: int, field: str) -> None:
    body = b'{"prompt": "x", "%s": %s1%s}' % (field.encode(), b'{"a":' * depth, b"}" * depth)
    async with Http().client() as client:
        response = await client.post("/v1/completions", content=body)
    assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1e-400", "9" * 400, "-0", "1.0", "1E2", "5e-324"])
@pytest.mark.parametrize(
    "field",
    [
        "temperature",
        "max_tokens",
        "seed",
        "n",
        "top_k",
        "logprobs",
        "stop",
        "time_limit_ms",
        "x",
        "user",
        "prompt",
        "guided_json",
        "echo",
    ],
)
async def test_numbers_are_no_internal_error(field: str, number: str) -> None:
    body = f'{{"prompt": "x", "{field}": {number}}}'
    nested = f'{{"prompt": "x", "{field}": {{"minimum": {number}}}}}'
    async with Http().client() as client:
        for content in (body, nested):
            response = await client.post("/v1/completions", content=content)
            assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize("text", ["\ud800", "\udfff\ud800", "\x00", "\u2028", "a\ud83d"])
@pytest.mark.parametrize(
    "field", ["prompt", "model", "user", "request_id", "stop", "guided_regex", "suffix", "x"]
)
async def test_odd_texts_are_no_internal_error(field: str, text: str) -> None:
    async with Http().client() as client:
        for body in (
            {"prompt": "x", field: text},
            {"prompt": "x", text: 1},
            {"prompt": "x", field: {text: text}},
        ):
            for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
                response = await client.post(path, content=json.dumps(body))
                assert response.status_code in (200, 400, 404), response.text
