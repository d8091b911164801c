"""The `openai` package, unmodified, against a real server; and what two of its users send and read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.integration.processes import DEMO_CHECKPOINT, Server

FIXTURES = Path(__file__).parents[1] / "data" / "http"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["a", "b"]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
MODEL = "demo"


@pytest.fixture
def url(demo_server: Server) -> str:
    return f"http://{demo_server.address_of('http')}"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def complete(client: openai.OpenAI, **more: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": "def main():", "seed": 1, **more})


def chat(client: openai.OpenAI, **more: Any) -> Any:
    messages = [{"role": "system", "content": "write"}, {"role": "user", "content": "a function"}]
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "seed": 1, **more})


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_completion_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=20)
    assert whole.usage.completion_tokens == 20
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 20
    assert whole.choices[0].finish_reason == "length"
    chunks = list(complete(client, max_tokens=20, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 20
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_max_tokens_is_sixteen_where_nobody_says(client: openai.OpenAI) -> None:
    assert complete(client, extra_body={"ignore_eos": True}).usage.completion_tokens == 16


def test_several_prompts_and_sequences(client: openai.OpenAI) -> None:
    answer = complete(client, prompt=["a = ", "b = "], n=2, max_tokens=4, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = complete(client, prompt="b = ", n=2, max_tokens=4, temperature=1)
    assert [c.text for c in answer.choices[2:]] == [c.text for c in alone.choices]
    by_ids = client.completions.create(model=MODEL, prompt=[[5, 6], [7]], max_tokens=2)
    assert len(by_ids.choices) == 2


def test_stop_ends_before_its_text(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=40, temperature=0).choices[0].text
    stop = whole.strip()[3:6]
    answer = complete(client, max_tokens=40, temperature=0, stop=[stop, "\x00"])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == stop
    assert answer.choices[0].text == whole[: whole.index(stop)]


def test_logprobs(client: openai.OpenAI) -> None:
    logprobs = complete(client, max_tokens=5, temperature=0, logprobs=3).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 5
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert value == max(top.values()) == top[token], "greedy takes the best"
    content = chat(client, max_tokens=4, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == 4
    assert all(bytes(each.bytes).decode(errors="replace") == each.token for each in content)
    assert all(len(each.top_logprobs) == 2 for each in content)


def test_chat_and_its_stream_are_the_same(client: openai.OpenAI) -> None:
    whole = chat(client, max_completion_tokens=12)
    assert whole.choices[0].message.role == "assistant"
    chunks = list(chat(client, max_completion_tokens=12, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


def test_json_schema_is_obeyed(client: openai.OpenAI) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for seed in range(3):
        answer = chat(client, max_tokens=200, response_format=response_format, seed=seed)
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


@pytest.mark.parametrize(
    ("change", "kind", "param", "code"),
    [
        ({"top_p": 2}, openai.BadRequestError, "top_p", "invalid_value"),
        ({"temperature": 2.5}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"logprobs": 21}, openai.BadRequestError, "logprobs", "invalid_value"),
        ({"n": 9, "temperature": 1}, openai.BadRequestError, "n", "invalid_value"),
        ({"suffix": "x"}, openai.BadRequestError, "suffix", "unsupported_parameter"),
        ({"best_of": 3}, openai.BadRequestError, "best_of", "unsupported_parameter"),
        ({"prompt": "x" * 4000}, openai.BadRequestError, "prompt", "context_length_exceeded"),
        ({"model": "other"}, openai.NotFoundError, None, "model_not_found"),
    ],
)
def test_errors(
    client: openai.OpenAI, change: dict[str, Any], kind: type[openai.APIStatusError], param: str, code: str
) -> None:
    with pytest.raises(kind) as caught:
        complete(client, **change)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.response.headers["x-request-id"]
    if code == "context_length_exceeded":
        assert "This model's maximum context length is 512 tokens" in caught.value.message


async def test_asyncio(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = await client.completions.create(model=MODEL, prompt="x", max_tokens=3, stream=True)
        assert len([chunk async for chunk in stream]) >= 2


def test_keys_and_retries(tmp_path: Path) -> None:
    """A full queue is tried again until it is not; a wrong key and a running id are not."""
    environment = {"EXPERTMESH_API_KEY": "k" * 32}
    options = ["--workers", "0", "--max-queue-requests", "1"]
    with Server(str(DEMO_CHECKPOINT), *options, log=tmp_path / "log", env=environment) as server:
        server.wait_ready()
        url = f"http://{server.address_of('http')}/v1"
        with (
            openai.OpenAI(base_url=url, api_key="wrong" * 8) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.models.list()
        with openai.OpenAI(base_url=url, api_key="k" * 32, max_retries=0) as client:
            busy = client.completions.create(
                model="checkpoint", prompt="x", max_tokens=480, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(busy))
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(model="checkpoint", prompt="x", max_tokens=1)
            assert caught.value.response.headers["retry-after"]
            patient = client.with_options(max_retries=10)
            assert patient.completions.create(model="checkpoint", prompt="x", max_tokens=1).choices
            busy.close()
        assert httpx.get(url.replace("/v1", "/health")).status_code == 200


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_what_other_programs_send(url: str, path: Path) -> None:
    """Recorded requests; each file says which route, and which fields of the answer its program reads."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    response = httpx.post(url + recorded["path"], json=recorded["body"], timeout=60)
    assert response.status_code == 200, response.text
    if not recorded["body"].get("stream"):
        read(response.json(), recorded["reads"])
        return
    lines = [line for line in response.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    read(chunks[0], recorded["reads"])
    assert chunks[-1]["usage"]["completion_tokens"] == recorded["completion_tokens"]


def read(answer: Any, paths: list[str]) -> None:
    for path in paths:
        found = answer
        for part in path.split("."):
            found = found[int(part) if part.isdigit() else part]


def test_lm_eval_finds_what_it_scores(url: str) -> None:
    """Its loglikelihood: the continuation's logprobs, and whether greedy would have written it."""
    recorded = json.loads((FIXTURES / "lm_eval_loglikelihood.json").read_text(encoding="utf-8"))
    answer = httpx.post(f"{url}/v1/completions", json=recorded["body"], timeout=60).json()
    for choice, prompt in zip(answer["choices"], recorded["body"]["prompt"], strict=True):
        values = choice["logprobs"]["token_logprobs"][: len(prompt)]
        tops = choice["logprobs"]["top_logprobs"][: len(prompt)]
        assert values[0] is None
        assert all(value <= 0 for value in values[1:])
        for value, top in zip(values[1:], tops[1:], strict=True):
            assert max(top.values()) >= value


FLAG = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}


def test_a_small_object_ends_within_thirty_tokens(client: openai.OpenAI) -> None:
    """The model likes white space, and has no end of it where it may."""
    for seed in range(16):
        for compact in (False, True):
            outputs = {"json": FLAG, "disable_any_whitespace": compact}
            answer = complete(client, max_tokens=30, seed=seed, extra_body={"structured_outputs": outputs})
            (choice,) = answer.choices
            assert choice.finish_reason == "stop", choice.text
            assert set(json.loads(choice.text)) == {"a"}
            assert not compact or not set(choice.text) & set(" \n\r\t")


def test_the_wish_for_an_object_is_kept(client: openai.OpenAI) -> None:
    more = {"structured_outputs": {"json_object": True}}
    for seed in range(4):
        assert complete(client, max_tokens=8, seed=seed, extra_body=more).choices[0].text.startswith("{")


def test_allowed_tokens_and_bad_words(client: openai.OpenAI, url: str) -> None:
    usual = complete(client, max_tokens=16, temperature=0, extra_body={"return_token_ids": True}).choices[0]
    allowed = sorted(set(usual.token_ids))[::2]
    more = {"allowed_token_ids": allowed, "return_token_ids": True}
    found = complete(client, max_tokens=16, temperature=1, extra_body=more).choices[0].token_ids
    assert set(found) <= set(allowed)
    word = httpx.post(f"{url}/detokenize", json={"tokens": usual.token_ids[:1]}).json()["prompt"]
    more = {"bad_words": [word], "return_token_ids": True}
    found = complete(client, max_tokens=16, temperature=0, extra_body=more).choices[0].token_ids
    assert usual.token_ids[0] not in found
    more = {"allowed_token_ids": [allowed[0]], "structured_outputs": {"regex": "\u263a"}}
    with pytest.raises(openai.BadRequestError, match="leave no token to draw"):
        complete(client, max_tokens=4, extra_body=more)


def test_a_warning_disturbs_no_client(client: openai.OpenAI) -> None:
    told = ["temprature: unknown, passed over; did you mean temperature?"]
    answer = complete(client, max_tokens=2, extra_body={"temprature": 0})
    assert answer.model_extra["warnings"] == told
    chunks = list(chat(client, max_tokens=2, stream=True, extra_body={"temprature": 0}))
    assert chunks[0].model_extra["warnings"] == told
    assert not any("warnings" in chunk.model_extra for chunk in chunks[1:])
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt="x", max_tokens=1, extra_body={"temprature": 0}
    )
    assert raw.headers["x-expertmesh-warnings"] == told[0]


def test_a_message_goes_on(client: openai.OpenAI, url: str) -> None:
    """The prompt ends with the last message's own text."""
    messages: Any = [{"role": "user", "content": "write"}, {"role": "assistant", "content": "def main"}]
    prompts: list[str] = []
    for more in ({}, {"continue_final_message": True}, {"add_generation_prompt": False}):
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=1, extra_body={**more, "return_token_ids": True}
        )
        tokens = json.loads(answer.model_dump_json())["choices"][0]["prompt_token_ids"]
        prompts.append(httpx.post(f"{url}/detokenize", json={"tokens": tokens}).json()["prompt"])
    usual, goes_on, without = prompts
    assert goes_on.endswith("def main")
    assert without.startswith(goes_on)
    assert usual.startswith(without)
