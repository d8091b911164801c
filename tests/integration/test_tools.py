"""Calls of tools over HTTP and gRPC, against real servers: valid whatever the model's weights."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import jsonschema
import openai
import pytest

from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from tests.integration.processes import DEMO_CHECKPOINT, Server

pytestmark = pytest.mark.timeout(240)

# Short templates of our own words, each with its family's marks.
_TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}\n{% endfor %}"
)
_TOOLS = "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}"
CALLS = {
    "hermes": "<tool_call>\n{{ c.function | tojson }}\n</tool_call>",
    "mistral": "[TOOL_CALLS] [{{ c.function | tojson }}]",
    "deepseek_v3": "<｜tool▁calls▁begin｜>{{ c.function.name + '```json' + c.function.arguments }}",
}
TEMPLATES = {form: _TOOLS + _TURNS.replace("CALL", call) + "<|assistant|>" for form, call in CALLS.items()}


def string(**more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": 6, **more}


def schema(*required: str, **properties: Any) -> dict[str, Any]:
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required or properties)}


# Ten, as applications have them.
SCHEMAS: dict[str, dict[str, Any]] = {
    "nothing": schema(),
    "text": schema(city=string()),
    "choice": schema(unit={"enum": ["celsius", "fahrenheit"]}),
    "whole": schema(days={"type": "integer", "minimum": 1, "maximum": 14}),
    "number": schema(share={"type": "number", "minimum": 0, "maximum": 1}),
    "truth": schema(exact={"type": "boolean"}, last={"type": "null"}),
    "list": schema(
        ids={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3}
    ),
    "nested": schema(place=schema(x={"type": "integer", "maximum": 9, "minimum": 0}, y={"type": "boolean"})),
    "either": schema(value={"anyOf": [{"type": "boolean"}, {"enum": ["a", "b"]}]}),
    "optional": schema("a", a={"type": "boolean"}, b={"type": "boolean"}),
}


@pytest.fixture(scope="module", params=TEMPLATES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tools")
    template = folder / "chat.jinja"
    template.write_text(TEMPLATES[request.param], encoding="utf-8")
    arguments = (str(DEMO_CHECKPOINT), "--workers=0", "--model-name=demo", f"--chat-template={template}")
    with Server(*arguments, log=folder / "log") as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    base = f"http://{server.address_of('http')}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as found:
        yield found


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    function = {"name": name, "description": f"It does {name}.", "parameters": parameters or SCHEMAS[name]}
    return {"type": "function", "function": function}


def ask(client: openai.OpenAI, **more: Any) -> Any:
    messages = [{"role": "user", "content": "What is the weather?"}]
    asked = {
        "model": "demo",
        "messages": messages,
        "seed": 7,
        "max_tokens": 200,
        "parallel_tool_calls": False,
    }
    return client.chat.completions.create(**{**asked, **more})


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_call_that_is_required_is_valid(client: openai.OpenAI, name: str) -> None:
    tools = [tool(name), tool("whole" if name != "whole" else "text")]
    for seed in range(3):
        [choice] = ask(client, tools=tools, tool_choice="required", seed=seed).choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls
        assert call.type == "function"
        assert call.id
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_a_named_tool_is_called(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "choice"}}
    answer = ask(client, tools=[tool("text"), tool("choice")], tool_choice=choice)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "choice"
    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS["choice"])


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    more = {"tools": [tool("nested"), tool("text")], "tool_choice": "required"}
    [whole] = ask(client, **more).choices[0].message.tool_calls
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True, **more) if chunk.choices]
    parts = [part for chunk in chunks for part in chunk.delta.tool_calls or ()]
    assert [part.function.name for part in parts if part.id] == [whole.function.name]
    assert len({part.index for part in parts}) == 1
    assert "".join(part.function.arguments or "" for part in parts) == whole.function.arguments
    assert len(parts) > 2, "arguments come as they are written"
    assert not any(chunk.delta.content for chunk in chunks)
    assert chunks[-1].finish_reason == "tool_calls"


def test_without_a_call_the_answer_is_text(client: openai.OpenAI) -> None:
    """This model does not know of tools, so it says what it says; the tools are in the prompt."""
    plain, offered = ask(client, temperature=0), ask(client, temperature=0, tools=[tool("text")])
    assert offered.choices[0].message.content
    assert offered.choices[0].message.tool_calls is None
    assert offered.usage.prompt_tokens > plain.usage.prompt_tokens
    none = ask(client, temperature=0, tools=[tool("text")], tool_choice="none")
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_conversation_with_calls_and_answers_goes_on(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Which is it?"}]
    for turn in range(5):
        answer = ask(client, messages=messages, tools=[tool("truth")], tool_choice="required", max_tokens=200)
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": f"{turn}"})
    assert answer.usage.prompt_tokens > 5 * 10


def test_openai_s_first_form(client: openai.OpenAI) -> None:
    function = {"name": "truth", "parameters": SCHEMAS["truth"]}
    body = {"functions": [function], "function_call": {"name": "truth"}}
    [choice] = ask(client, extra_body=body, parallel_tool_calls=openai.omit).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call.name == "truth"
    jsonschema.validate(json.loads(choice.message.function_call.arguments), SCHEMAS["truth"])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [tool("text")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ({"tools": [tool("text"), tool("text")]}, "tools[1].name"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [tool("a b", SCHEMAS["text"])]}, "tools[0].name"),
        ({"tools": [tool("text")], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [tool("text")], "tool_choice": "required", "stop": ["x"]}, "stop"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    client: openai.OpenAI, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **more)
    assert caught.value.param == param


def test_strict_refuses_what_cannot_be_kept(client: openai.OpenAI) -> None:
    odd = tool(
        "odd", schema(a={"type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "maxItems": 2})
    )
    assert ask(client, tools=[odd], tool_choice="required").choices[0].message.tool_calls
    odd["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        ask(client, tools=[odd], tool_choice="required")
    assert caught.value.param == "tools"


def test_over_grpc_calls_are_typed(server: Server) -> None:
    chat = pb.ChatPrompt(
        messages=[pb.ChatPrompt.Message(role="user", content="Which?")],
        tools=[pb.Tool(name="truth", parameters=json.dumps(SCHEMAS["truth"]))],
        tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED),
        parallel_tool_calls=False,
    )
    request = pb.GenerateRequest(chat=chat, sampling=pb.SamplingParams(seed=3))
    with grpc.insecure_channel(server.address) as channel:
        answer = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=60)  # type: ignore[no-untyped-call]
    [output] = answer.outputs
    assert output.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert output.text == ""
    [call] = output.tool_calls
    assert call.name == "truth"
    jsonschema.validate(json.loads(call.arguments), SCHEMAS["truth"])
