"""Whatever a client sends, it is answered or told what is wrong with it, and the server goes on."""

from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.api.errors import ApiError, Code
from coordinator.api.served_model import ServedModel
from coordinator.api.validation import Generation, resolve
from protos.expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.background import serving
from tests.coordinator.api.fakes import PATIENCE, served_model

CLIENT_CODES = {"INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS"}
PATHS = ("Generate", "GenerateStream", "Tokenize", "Detokenize", "GetModelInfo")

uint32 = st.one_of(st.integers(0, 64), st.integers(300, 340), st.integers(0, 2**32 - 1))
double = st.one_of(st.floats(), st.sampled_from([0.0, 0.5, 1.0, 2.0, -0.0, 5e-324]))
name = st.one_of(st.just(""), st.just("tiny"), st.text(max_size=140))


def message(kind: type[Message], **fields: st.SearchStrategy[object]) -> st.SearchStrategy[Message]:
    """A message with any part of the fields set."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: kind(**values))


token_list = st.lists(uint32, max_size=40)
sampling = message(
    pb.SamplingParams,
    temperature=double,
    top_p=double,
    top_k=uint32,
    min_p=double,
    seed=st.integers(0, 2**64 - 1),
    presence_penalty=double,
    num_sequences=uint32,
    logit_bias=st.dictionaries(uint32, double, max_size=3),
)
stopping = message(
    pb.StoppingParams,
    max_tokens=uint32,
    min_tokens=uint32,
    stop_sequences=st.lists(st.text(max_size=5), max_size=2),
    stop_token_ids=st.lists(uint32, max_size=70),
    ignore_eos=st.booleans(),
    context_overflow=st.integers(0, 5),
)
response = message(
    pb.ResponseOptions, return_text=st.booleans(), return_token_ids=st.booleans(), logprobs=uint32
)
prompt: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"text": st.text(max_size=60)}),
    st.fixed_dictionaries({"token_ids": token_list.map(lambda ids: pb.TokenIds(ids=ids))}),
    st.just({"chat": pb.ChatPrompt()}),
)


@st.composite
def requests(draw: st.DrawFn) -> pb.GenerateRequest:
    parts: dict[str, st.SearchStrategy[Any]] = {
        "sampling": sampling,
        "stopping": stopping,
        "response": response,
    }
    chosen: dict[str, Any] = draw(
        st.fixed_dictionaries({}, optional={"request_id": name, "model": name, **parts})
    )
    return pb.GenerateRequest(**draw(prompt), **chosen)


def resolved_or_refused(request: pb.GenerateRequest, model: ServedModel) -> Generation | ApiError:
    try:
        return resolve(request, model, "id", 0.0)
    except ApiError as error:
        return error


@settings(max_examples=300, deadline=None)
@given(requests())
def test_validation_refuses_or_gives_what_the_engine_may_rely_on(request: pb.GenerateRequest) -> None:
    model = served_model()
    result = resolved_or_refused(request, model)
    if isinstance(result, ApiError):
        assert result.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.NOT_FOUND)
        assert "\n" not in result.message
        return
    generation = result
    stop, prompt_ids = generation.request.stop, generation.request.prompt_ids
    assert prompt_ids
    assert all(0 <= token_id < 320 for token_id in (*prompt_ids, *stop.stop_token_ids))
    assert 0 <= stop.min_tokens <= stop.max_tokens <= model.max_output_tokens
    assert stop.max_tokens >= 1
    if stop.context_overflow == "stop":
        assert len(prompt_ids) + stop.max_tokens <= model.max_context


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    """A blocking channel to a server on a loop of its own: hypothesis runs no coroutines."""
    with serving() as server, grpc.insecure_channel(server.address) as channel:
        yield channel


def code_of(channel: grpc.Channel, method: str, data: bytes) -> str:
    path = f"/expertmesh.v1.GenerationService/{method}"
    try:
        raw: Any = (channel.unary_stream if method == "GenerateStream" else channel.unary_unary)(path)
        answer = raw(data, timeout=PATIENCE)
        if method == "GenerateStream":
            list(answer)
    except grpc.RpcError as error:
        return str(cast(grpc.Call, error).code().name)
    return "OK"


@settings(max_examples=100, deadline=None)
@given(requests())
def test_any_request_is_answered_or_refused(channel: grpc.Channel, request: pb.GenerateRequest) -> None:
    unary = code_of(channel, "Generate", request.SerializeToString())
    assert unary in {"OK", *CLIENT_CODES}
    assert code_of(channel, "GenerateStream", request.SerializeToString()) == unary


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PATHS), st.binary(max_size=60))
def test_any_bytes_are_answered_or_refused(channel: grpc.Channel, method: str, data: bytes) -> None:
    assert code_of(channel, method, data) in {"OK", *CLIENT_CODES}


def test_the_server_is_alive_afterwards(channel: grpc.Channel) -> None:
    data = pb.GenerateRequest(text="hello").SerializeToString()
    assert code_of(channel, "Generate", data) == "OK"
