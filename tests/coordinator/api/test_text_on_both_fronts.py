"""What a model writes, as both fronts show it: characters of several tokens, and stops wherever they are.

The engine is the real one; its model says what it is told.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio

from coordinator.api.text.chat_template import ChatTemplate
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.prepared import Preparer
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.answers import chunks_of, joined, joined_chunks
from tests.coordinator.api.both_fronts import Fronts, SaysRunner, both_fronts
from tests.coordinator.api.fakes import BOS, served_model, tiny_tokenizer
from tests.coordinator.api.grammar import check_grammar
from tests.coordinator.engine.client.clients import CLIENTS
from tests.coordinator.engine.fakes import engine_over

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAID = "naïve 東京 🙂 END of it, ENDED"
WORLD = "naïve café 東京 🙂👩‍👩‍👧 \U0001f1e8\U0001f1ed नमस्ते"


@asynccontextmanager
async def saying(text: str, client: str) -> AsyncIterator[Fronts]:
    token_ids = tiny_tokenizer().encode(text, add_bos=False)
    core = engine_over(
        SaysRunner(token_ids),
        max_seq_len=256,
        num_blocks=128,
        preparer=Preparer(320, tiny_tokenizer()),
    )
    engine = await CLIENTS[client](EngineThread(core))
    model = served_model(max_output_tokens=200, chat_template=ChatTemplate("{{ messages[0].content }}"))
    model = replace(model, config=replace(model.config, max_seq_len=256))
    async with both_fronts(engine, model) as fronts:
        yield fronts
    assert await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(CLIENTS))
async def said(request: pytest.FixtureRequest) -> AsyncIterator[Fronts]:
    async with saying(SAID, request.param) as fronts:
        yield fronts


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[Fronts]:
    async with saying(WORLD, "in process") as fronts:
        yield fronts


def num_tokens(text: str) -> int:
    return len(tiny_tokenizer().encode(text, add_bos=False))


@dataclass(frozen=True)
class Answer:
    """What both fronts must agree on."""

    text: str
    token_ids: list[int]
    stop: str | None
    num_tokens: int


def of_response(response: pb.GenerateResponse) -> Answer:
    (output,) = response.outputs
    stop = output.stop_match.stop_sequence if output.HasField("stop_match") else None
    assert (output.finish_reason == pb.FINISH_REASON_STOP) == (stop is not None)
    return Answer(output.text, list(output.token_ids), stop, response.usage.completion_tokens)


def of_body(body: dict[str, Any]) -> Answer:
    (choice,) = body["choices"]
    assert (choice["finish_reason"] == "stop") == (choice["stop_reason"] is not None)
    return Answer(
        choice["text"], choice["token_ids"], choice["stop_reason"], body["usage"]["completion_tokens"]
    )


async def four_answers(
    fronts: Fronts, stops: Sequence[str], *, include: bool, max_tokens: int
) -> tuple[Answer, list[str]]:
    """The one answer that both fronts give, whole and as a stream; and the pieces that came."""
    message = pb.GenerateRequest(text="x")
    message.stopping.max_tokens = max_tokens
    message.stopping.stop_sequences.extend(stops)
    message.stopping.include_stop_in_output = include
    message.response.return_token_ids = True
    body = {
        "prompt": "x",
        "max_tokens": max_tokens,
        "stop": list(stops),
        "include_stop_str_in_output": include,
        "return_token_ids": True,
    }
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    events = [event async for event in fronts.stub.GenerateStream(message)]
    check_grammar(events)
    chunks = chunks_of((await fronts.http.post("/v1/completions", json=streamed)).text)
    answers = [
        of_response(await fronts.stub.Generate(message)),
        of_response(joined(events)),
        of_body((await fronts.http.post("/v1/completions", json=body)).json()),
        of_body(joined_chunks(chunks)),
    ]
    assert answers == [answers[0]] * 4
    pieces = [event.delta.text for event in events if event.HasField("delta")]
    return answers[0], [*pieces, *(each["text"] for chunk in chunks for each in chunk["choices"])]


STOPS = {
    "over tokens": (["END"], "END", "naïve 東京 🙂 "),
    "in many bytes": (["京 🙂"], "京 🙂", "naïve 東"),
    "one character of several tokens": (["🙂"], "🙂", "naïve 東京 "),
    "after one that almost was": (["東京!", " 🙂 E"], " 🙂 E", "naïve 東京"),
    "inside text held back for another": (["東京 🙂 END of nothing", "🙂"], "🙂", "naïve 東京 "),
    "the first to end": (["END", "N"], "N", "naïve 東京 🙂 E"),
    "the longest of those that end there": (["D", "END"], "END", "naïve 東京 🙂 "),
    "at the very beginning": (["naïve"], "naïve", ""),
    "at the very end": ([", ENDED"], ", ENDED", "naïve 東京 🙂 END of it"),
}


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("include", [False, True])
async def test_a_stop(name: str, include: bool, said: Fronts) -> None:
    stops, found, before = STOPS[name]
    answer, pieces = await four_answers(said, stops, include=include, max_tokens=num_tokens(SAID))
    assert (answer.text, answer.stop) == (before + (found if include else ""), found)
    written = tiny_tokenizer().decode(answer.token_ids)
    assert written.startswith(before + found), "the tokens that made it up are counted and shown"
    assert num_tokens(found) > 1 or found in "ND"
    assert all("\ufffd" not in piece for piece in pieces)


async def test_what_is_held_back_comes_when_no_stop_comes(said: Fronts) -> None:
    stops = ["END of nothing", "it, ENDED!", "東京🙂"]
    answer, _ = await four_answers(said, stops, include=False, max_tokens=num_tokens(SAID))
    assert (answer.text, answer.stop) == (SAID, None)


async def test_a_stop_does_not_count_before_min_tokens(said: Fronts) -> None:
    """Neither the first END, nor after that the text in which it was."""
    least = num_tokens("naïve 東京 🙂 END of")
    message = pb.GenerateRequest(text="x")
    message.stopping.MergeFrom(pb.StoppingParams(stop_sequences=["END"], min_tokens=least, max_tokens=99))
    (output,) = (await said.stub.Generate(message)).outputs
    body = {"prompt": "x", "stop": "END", "min_tokens": least, "max_tokens": 99}
    (choice,) = (await said.http.post("/v1/completions", json=body)).json()["choices"]
    assert output.text == choice["text"] == "naïve 東京 🙂 END of it, "


async def test_any_writing_comes_through_both_fronts(world: Fronts) -> None:
    count = num_tokens(WORLD)
    assert count > len(WORLD), "characters of several tokens"
    answer, pieces = await four_answers(world, [], include=False, max_tokens=count)
    assert answer.text == WORLD
    assert all("\ufffd" not in piece for piece in pieces), "no character was cut"


async def test_the_bytes_of_tokens_are_the_bytes_of_the_text(world: Fronts) -> None:
    count = num_tokens(WORLD)
    message = pb.GenerateRequest(text=WORLD)
    message.stopping.max_tokens, message.response.logprobs = count, 0
    whole = await world.stub.Generate(message)
    streamed = joined([event async for event in world.stub.GenerateStream(message)])
    for response in (whole, streamed):
        (output,) = response.outputs
        assert b"".join(each.token_bytes for each in output.logprobs) == output.text.encode()
        assert output.text == WORLD
    body = {"messages": [{"role": "user", "content": WORLD}], "max_tokens": count, "logprobs": True}
    path = "/v1/chat/completions"
    chat = (await world.http.post(path, json=body)).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of((await world.http.post(path, json={**body, **options})).text)
    for answer in (chat, joined_chunks(chunks)):
        (choice,) = answer["choices"]
        data = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
        assert data.decode() == choice["message"]["content"] == WORLD


async def test_any_writing_goes_into_tokens_and_back(world: Fronts) -> None:
    request = pb.TokenizeRequest(text=WORLD, return_token_bytes=True, add_special_tokens=False)
    tokens = await world.stub.Tokenize(request)
    assert b"".join(tokens.token_bytes).decode() == WORLD
    text = (await world.stub.Detokenize(pb.DetokenizeRequest(token_ids=tokens.token_ids))).text
    body = {"prompt": WORLD, "add_special_tokens": False}
    found = (await world.http.post("/tokenize", json=body)).json()
    assert found["tokens"] == list(tokens.token_ids)
    back = (await world.http.post("/detokenize", json={"tokens": found["tokens"]})).json()
    bare = {"tokens": [BOS, *found["tokens"]], "skip_special_tokens": True}
    assert (await world.http.post("/detokenize", json=bare)).json() == {"prompt": text}
    assert text == back["prompt"] == WORLD
