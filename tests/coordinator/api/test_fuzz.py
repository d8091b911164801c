"""Whatever a client sends, it is answered or told what is wrong with it, and the server goes on."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.api.shared.errors import ApiError, Code
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.text.chat_template import ChatTemplate
from coordinator.api.validation.request import ValidRequest, resolve
from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.background import serving
from tests.coordinator.api.fakes import PATIENCE, served_model
from tests.coordinator.api.internals import INTERNALS
from tests.examples import examples

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
    frequency_penalty=double,
    repetition_penalty=double,
    num_sequences=uint32,
    logit_bias=st.dictionaries(uint32, double, max_size=3),
    allowed_token_ids=st.lists(uint32, max_size=3),
    bad_words=st.lists(st.text(max_size=5), max_size=3),
)
stopping = message(
    pb.StoppingParams,
    max_tokens=uint32,
    min_tokens=uint32,
    stop_sequences=st.lists(st.text(max_size=5), max_size=2),
    stop_token_ids=st.lists(uint32, max_size=70),
    ignore_eos=st.booleans(),
    include_stop_in_output=st.booleans(),
    time_limit=st.builds(
        duration_pb2.Duration,
        seconds=st.integers(-(2**63), 2**63 - 1),
        nanos=st.integers(-(2**31), 2**31 - 1),
    ),
    context_overflow=st.integers(0, 5),
)
response = message(
    pb.ResponseOptions,
    return_text=st.booleans(),
    return_token_ids=st.booleans(),
    return_prompt_token_ids=st.booleans(),
    logprobs=uint32,
    prompt_logprobs=uint32,
    skip_special_tokens=st.booleans(),
    return_routed_experts=st.booleans(),
    min_tokens_per_message=uint32,
)
constraint = st.one_of(
    message(pb.OutputConstraint, json_schema=st.text(max_size=30), compact_json=st.booleans()),
    message(pb.OutputConstraint, regex=st.text(max_size=30)),
    message(pb.OutputConstraint, grammar=st.text(max_size=30)),
    st.lists(st.text(max_size=5), max_size=3).map(
        lambda choices: pb.OutputConstraint(choice=pb.OutputConstraint.Choice(choices=choices))
    ),
    st.just(pb.OutputConstraint(json_object=pb.OutputConstraint.JsonObject())),
)
experts = message(
    pb.ExpertSelection,
    allowed_experts=st.lists(uint32, max_size=7),
    denied_experts=st.lists(uint32, max_size=7),
    experts_per_token=uint32,
)
short = st.text(max_size=5)
tool_name = st.one_of(st.sampled_from(["f", "g"]), short)
object_text = st.one_of(
    st.sampled_from(["{}", '{"type": "object"}', '{"properties": {"a": {"not": {}}}}']), short
)
choice = st.one_of(
    message(pb.ToolChoice, mode=st.integers(0, 5)),
    message(pb.ToolChoice, name=tool_name),
)
chat = message(
    pb.ChatPrompt,
    messages=st.lists(
        st.builds(
            pb.ChatPrompt.Message,
            role=st.one_of(st.sampled_from(["user", "system", "assistant", "tool"]), short),
            content=st.text(max_size=9),
            tool_calls=st.lists(
                st.builds(pb.ToolCall, id=short, name=tool_name, arguments=object_text), max_size=2
            ),
            tool_call_id=short,
            name=short,
            reasoning=short,
        ),
        max_size=3,
    ),
    tools=st.lists(
        st.builds(pb.Tool, name=tool_name, description=short, parameters=object_text, strict=st.booleans()),
        max_size=2,
    ),
    tool_choice=choice,
    parallel_tool_calls=st.booleans(),
    add_generation_prompt=st.booleans(),
    continue_final_message=st.booleans(),
    template_kwargs=st.one_of(st.just('{"a": 1}'), st.text(max_size=9)),
)
prompt: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"text": st.text(max_size=60)}),
    st.fixed_dictionaries({"token_ids": token_list.map(lambda ids: pb.TokenIds(ids=ids))}),
    st.fixed_dictionaries({"chat": chat}),
)


@st.composite
def requests(draw: st.DrawFn) -> pb.GenerateRequest:
    parts: dict[str, st.SearchStrategy[Any]] = {
        "sampling": sampling,
        "stopping": stopping,
        "response": response,
        "constraint": constraint,
        "experts": experts,
        "truncate_prompt_tokens": uint32,
        "add_special_tokens": st.booleans(),
    }
    chosen: dict[str, Any] = draw(
        st.fixed_dictionaries({}, optional={"request_id": name, "model": name, **parts})
    )
    return pb.GenerateRequest(**draw(prompt), **chosen)


def never_set(kind: Any, messages: Sequence[Message], path: str = "") -> Iterator[str]:
    """Fields that none of the messages sets, down to the last."""
    for field in kind.fields:
        name, inner = f"{path}{field.name}", field.message_type
        values = [
            value for each in messages for found, value in each.ListFields() if found.name == field.name
        ]
        if not values:
            yield name
        elif inner is not None and not inner.GetOptions().map_entry:
            parts = [part for value in values for part in (value if isinstance(value, Sequence) else [value])]
            yield from never_set(inner, parts, f"{name}.")


def test_every_field_is_tried() -> None:
    tried: list[pb.GenerateRequest] = []

    @settings(max_examples=600)
    @given(requests())
    def collect(request: pb.GenerateRequest) -> None:
        tried.append(request)

    collect()
    never = list(never_set(pb.GenerateRequest.DESCRIPTOR, tried))
    assert never == [], "new? then add them to the messages at the top of this file"


def resolved_or_refused(request: pb.GenerateRequest, model: ServedModel) -> ValidRequest | ApiError:
    try:
        return resolve(request, model, "id", 0.0)
    except ApiError as error:
        return error


@settings(max_examples=examples(300), deadline=None)
@given(requests())
def test_validation_refuses_or_gives_what_the_engine_may_rely_on(request: pb.GenerateRequest) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    model = served_model(chat_template=template, allow_routed_experts=True)
    result = resolved_or_refused(request, model)
    if isinstance(result, ApiError):
        assert result.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.NOT_FOUND)
        assert "\n" not in result.message
        return
    valid = result
    stop, prompt_ids = valid.request.stop, valid.request.prompt_ids
    assert prompt_ids
    assert all(0 <= token_id < 320 for token_id in (*prompt_ids, *stop.stop_token_ids))
    assert 0 <= stop.min_tokens <= stop.max_tokens <= model.max_output_tokens
    assert stop.max_tokens >= 1 or valid.request.returns.prompt_logprobs is not None
    assert 1 <= valid.request.num_sequences <= 8
    assert 1 <= valid.min_tokens_per_message <= 64
    chosen = valid.request.experts
    assert chosen is None or chosen.allowed is None or 0 < len(chosen.allowed) < 5
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
        failed = cast(grpc.Call, error)
    else:
        return "OK"
    assert not INTERNALS.search(failed.details() or "")
    return str(failed.code().name)


@settings(max_examples=examples(100), deadline=None)
@given(requests())
def test_any_request_is_answered_or_refused(channel: grpc.Channel, request: pb.GenerateRequest) -> None:
    unary = code_of(channel, "Generate", request.SerializeToString())
    assert unary in {"OK", *CLIENT_CODES}
    assert code_of(channel, "GenerateStream", request.SerializeToString()) == unary


@settings(max_examples=examples(100), deadline=None)
@given(st.sampled_from(PATHS), st.binary(max_size=60))
def test_any_bytes_are_answered_or_refused(channel: grpc.Channel, method: str, data: bytes) -> None:
    assert code_of(channel, method, data) in {"OK", *CLIENT_CODES}


def test_the_server_is_alive_afterwards(channel: grpc.Channel) -> None:
    data = pb.GenerateRequest(text="hello").SerializeToString()
    assert code_of(channel, "Generate", data) == "OK"
