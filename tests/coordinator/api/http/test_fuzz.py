"""Whatever JSON a client posts, it is answered or told what is wrong with it; never with a 500."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.api.http.fields import Route
from coordinator.api.text.chat_template import ChatTemplate
from tests.coordinator.api.fakes import ends_at_once, served_model
from tests.coordinator.api.http_fakes import Http
from tests.coordinator.api.internals import INTERNALS
from tests.examples import examples

ROUTES = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")

# Half of a surrogate pair is valid JSON and no text.
text = st.one_of(st.text(max_size=12), st.text(st.characters(), max_size=6), st.just("\ud800"))
integer = st.one_of(
    st.integers(-2, 64), st.integers(300, 340), st.integers(), st.sampled_from([2**32, 2**64, 10**30])
)
number = st.one_of(st.floats(), st.floats(-2, 2), integer, st.just(-0.0))
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), number, text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
digits = st.one_of(
    st.integers(0, 340).map(str), st.text("0123456789", max_size=30), text, st.sampled_from(["0" * 5000, "²"])
)


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Of the right type, else of any other."""
    return st.one_of(*[strategy] * 6, junk)


@st.composite
def record(draw: st.DrawFn, /, *needed: str, **fields: st.SearchStrategy[Any]) -> dict[str, Any]:
    """An object with what it needs and a few of its other fields: of many wrong ones only the first shows."""
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4))
    return {name: draw(mostly(fields[name])) for name in (*needed, *names)}


boolean = st.booleans()
ids = st.lists(integer, max_size=6)
schema = st.one_of(st.booleans(), st.dictionaries(text, junk, max_size=2))
turn = record(
    "role",
    "content",
    role=st.one_of(st.sampled_from(["user", "system", "assistant", "developer"]), text),
    content=st.one_of(text, st.lists(record(type=st.just("text"), text=text), max_size=2)),
    tool_calls=junk,
)
COMMON = {
    "model": st.one_of(st.sampled_from(["", "tiny", "default"]), text),
    "stream": boolean,
    "stream_options": record(include_usage=boolean, continuous_usage_stats=boolean),
    "request_id": st.one_of(st.just("a"), text),
    **dict.fromkeys(("temperature", "top_p", "min_p"), number),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), number),
    **dict.fromkeys(("top_k", "seed", "n", "best_of", "max_tokens", "min_tokens"), integer),
    **dict.fromkeys(("prompt_logprobs", "truncate_prompt_tokens", "time_limit_ms"), integer),
    **dict.fromkeys(("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"), boolean),
    **dict.fromkeys(("return_token_ids", "return_routed_experts", "add_special_tokens"), boolean),
    "logit_bias": st.dictionaries(digits, number, max_size=3),
    "stop": st.one_of(text, st.lists(text, max_size=3)),
    "stop_token_ids": ids,
    "context_overflow": st.sampled_from(["stop", "slide", "no"]),
    "response_format": record(
        type=st.sampled_from(["text", "json_object", "json_schema"]), json_schema=record(schema=schema)
    ),
    "structured_outputs": record(json=schema, regex=text, choice=st.lists(text, max_size=2), grammar=text),
    "guided_json": st.one_of(schema, text),
    "guided_regex": text,
    "guided_choice": st.lists(text, max_size=2),
    "guided_grammar": text,
    "experts": record(allowed_experts=ids, denied_experts=ids, experts_per_token=integer),
    **dict.fromkeys(("suffix", "tools", "tool_choice", "user", "functions", "novel"), junk),
}
messages = st.lists(mostly(turn), max_size=3)
prompts = st.one_of(text, ids, st.lists(text, max_size=3), st.lists(ids, max_size=3))
BODIES = {
    "/v1/completions": record("prompt", prompt=prompts, logprobs=integer, echo=boolean, **COMMON),
    "/v1/chat/completions": record(
        "messages",
        messages=messages,
        logprobs=boolean,
        top_logprobs=integer,
        max_completion_tokens=integer,
        **COMMON,
    ),
    "/tokenize": record("prompt", model=text, prompt=text, messages=messages, add_special_tokens=boolean),
    "/detokenize": record("tokens", model=text, tokens=ids),
}


@dataclass
class Poster:
    """Posts from tests that run no coroutines, all on one event loop."""

    runner: asyncio.Runner
    client: httpx.AsyncClient

    def post(self, path: str, content: bytes) -> httpx.Response:
        return self.runner.run(self.client.post(path, content=content))


@pytest.fixture(scope="module")
def poster() -> Iterator[Poster]:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    app = Http(ends_at_once(), served_model(chat_template=template)).app
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        yield Poster(runner, client)
        runner.run(client.aclose())


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code == 200:
        return
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    # Of a field of the other route its path is told.
    assert not INTERNALS.search(response.text.replace(Route.CHAT, ""))


@pytest.mark.parametrize("path", ROUTES)
def test_any_body_is_answered_or_refused(path: str, poster: Poster) -> None:
    @settings(max_examples=examples(150 if path.startswith("/v1") else 50))
    @given(mostly(BODIES[path]))
    def post(body: object) -> None:
        check(poster.post(path, json.dumps(body).encode()))

    post()


@given(st.sampled_from(ROUTES), st.binary(max_size=60))
def test_any_bytes_are_refused(poster: Poster, path: str, data: bytes) -> None:
    check(poster.post(path, data))


@pytest.mark.parametrize("depth", [50, 900, 5_000, 100_000])
@pytest.mark.parametrize("name", ["guided_json", "novel", "response_format", "logit_bias"])
def test_any_depth_is_refused_or_nothing(poster: Poster, name: str, depth: int) -> None:
    body = f'{{"prompt": "x", "{name}": {{"a": {"[" * depth}{"]" * depth}}}}}'
    check(poster.post("/v1/completions", body.encode()))


def test_the_server_is_alive_afterwards(poster: Poster) -> None:
    assert poster.post("/v1/completions", b'{"prompt": "x"}').status_code == 200
