"""Any valid request, of one to four sequences: its stream obeys the grammar, and joined is the whole answer.

Over a real channel and a real engine with a random model.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.prepared import Preparer
from coordinator.engine.core.scheduler import Scheduler
from expertmesh.v1 import generation_pb2 as pb
from tests.cache_sizes import whole_sizes
from tests.coordinator.api.answers import chunks_of, joined, joined_chunks
from tests.coordinator.api.both_fronts import Fronts, both_fronts
from tests.coordinator.api.fakes import served_model
from tests.coordinator.api.grammar import check_grammar
from tests.coordinator.engine.client.clients import CLIENTS
from tests.examples import examples
from tests.models import make_cache, random_model


def some(kind: type[Message], **fields: st.SearchStrategy[object]) -> st.SearchStrategy[Any]:
    """A message with any part of the fields set."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: kind(**values))


token_id = st.integers(0, 319)
sampling = some(
    pb.SamplingParams,
    temperature=st.one_of(st.floats(0, 2, exclude_min=True), st.floats(0.5, 2)),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 320),
    min_p=st.floats(0, 1),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0, 2, exclude_min=True),
    logit_bias=st.dictionaries(token_id, st.floats(-100, 100), max_size=3),
)
stopping = some(
    pb.StoppingParams,
    stop_sequences=st.lists(st.sampled_from(["a", "e", "é", " th", "the", "\n"]), max_size=3),
    stop_token_ids=st.lists(token_id, max_size=20),
    ignore_eos=st.booleans(),
    include_stop_in_output=st.booleans(),
    min_tokens=st.integers(0, 3),
    context_overflow=st.integers(0, 2),
)
response = some(
    pb.ResponseOptions,
    return_text=st.booleans(),
    return_token_ids=st.booleans(),
    return_prompt_token_ids=st.booleans(),
    logprobs=st.integers(0, 20),
    prompt_logprobs=st.integers(0, 20),
    skip_special_tokens=st.booleans(),
    min_tokens_per_message=st.integers(1, 8),
)


experts = some(
    pb.ExpertSelection,
    denied_experts=st.lists(st.integers(0, 4), max_size=4),
    experts_per_token=st.integers(1, 5),
)


@st.composite
def requests(draw: st.DrawFn) -> pb.GenerateRequest:
    prompt = draw(st.lists(token_id, min_size=1, max_size=12))
    message = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), request_id="any")
    message.sampling.CopyFrom(draw(sampling))
    message.stopping.CopyFrom(draw(stopping))
    message.response.CopyFrom(draw(response))
    message.experts.CopyFrom(draw(experts))
    message.sampling.temperature = message.sampling.temperature or 0.8
    message.sampling.num_sequences = draw(st.integers(1, 4))
    message.sampling.seed = draw(st.integers(0, 2**64 - 1))
    message.stopping.max_tokens = draw(st.integers(3, 12))
    return message


class Served:
    """Both fronts for tests that run no coroutines, on an event loop that stands still between them."""

    def __init__(self, runner: asyncio.Runner, fronts: Fronts) -> None:
        self._runner = runner
        self._fronts = fronts

    def stream(self, message: pb.GenerateRequest) -> list[pb.GenerateStreamResponse]:
        return self._runner.run(self._read(message))

    def whole(self, message: pb.GenerateRequest) -> pb.GenerateResponse:
        return self._runner.run(self._call(message))

    def post(self, body: dict[str, Any]) -> str:
        return self._runner.run(self._fronts.http.post("/v1/completions", json=body)).text

    async def _read(self, message: pb.GenerateRequest) -> list[pb.GenerateStreamResponse]:
        return [event async for event in self._fronts.stub.GenerateStream(message)]

    async def _call(self, message: pb.GenerateRequest) -> pb.GenerateResponse:
        answer: pb.GenerateResponse = await self._fronts.stub.Generate(message)
        return answer


@pytest.fixture(scope="module", params=list(CLIENTS))
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    model = served_model()

    async def enter(stack: AsyncExitStack) -> Fronts:
        # Without a prefix cache, whose tokens are computed in other company and differ in the last bit.
        scheduler = Scheduler(whole_sizes(48), max_num_seqs=8, max_step_tokens=64, prefix_caching=False)
        runner = ModelRunner(random_model(model.config), make_cache(model.config, 48, 4))
        preparer = Preparer(model.config.vocab_size, model.tokenizer)
        core = Engine(scheduler, runner, model.max_context, preparer=preparer)
        engine = await CLIENTS[request.param](EngineThread(core))
        stack.push_async_callback(engine.close)
        return await stack.enter_async_context(both_fronts(engine, replace(model, kv_capacity_tokens=192)))

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        yield Served(runner, runner.run(enter(stack)))
        runner.run(stack.aclose())


@settings(max_examples=examples(25))
@given(requests())
def test_grpc(served: Served, message: pb.GenerateRequest) -> None:
    events = served.stream(message)
    check_grammar(events, message.sampling.num_sequences)
    streamed, whole = joined(events), served.whole(message)
    for each in (streamed, whole):
        each.ClearField("timings")
    assert streamed == whole
    assert [output.index for output in whole.outputs] == list(range(message.sampling.num_sequences))


@settings(max_examples=examples(20))
@given(
    st.lists(st.lists(token_id, min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(0, 5)),
    st.booleans(),
)
def test_http(
    served: Served, prompts: list[list[int]], n: int, max_tokens: int, logprobs: int | None, echo: bool
) -> None:
    """Every choice begins, ends once, and says nothing after that; usage comes last, once."""
    body = {"prompt": prompts, "n": n, "max_tokens": max_tokens, "logprobs": logprobs, "echo": echo}
    body |= {"seed": 1, "temperature": 1, "stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of(served.post(body))
    ended: set[int] = set()
    for chunk in chunks[:-1]:
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        assert choice["index"] not in ended
        if choice["finish_reason"] is not None:
            ended.add(choice["index"])
    assert ended == set(range(len(prompts) * n))
    assert chunks[-1]["choices"] == []
    usage = joined_chunks(chunks)["usage"]
    assert usage["prompt_tokens"] == sum(map(len, prompts))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert len(ended) <= usage["completion_tokens"] <= len(ended) * max_tokens
