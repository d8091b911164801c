"""How answers show calls and thoughts, whole and as events; and what of a history reaches the template."""

import json
from dataclasses import replace
from typing import Any

import pytest

from coordinator.api.http.fields import Route
from coordinator.api.text.chat_template import ChatTemplate
from coordinator.engine.messages.output import FinishReason
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import EOS, FakeEngine, last, served_model, tiny_tokenizer, tokens
from tests.coordinator.api.http_fakes import Http

pytestmark = BOTH_ENGINES

TEMPLATE = "{{ messages | tojson }}{{ tools | tojson }}{# <tool_call> <think> </think> #}"
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'


def http(output: str, source: str = TEMPLATE) -> Http:
    """A model with a long context that says this, two tokens at a time."""
    ids = tiny_tokenizer().encode(output, add_bos=False)
    steps = [tokens(*ids[at : at + 2]) for at in range(0, len(ids), 2)]
    engine = FakeEngine(*steps, last(EOS, reason=FinishReason.STOP, stop=EOS))
    config = replace(served_model().config, max_seq_len=1024)
    return Http(engine, served_model(chat_template=ChatTemplate(source), config=config))


async def answered(output: str, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **more}
    response = await http(output).post(Route.CHAT, body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_call_beside_text() -> None:
    answer = await answered(f"I look.\n\n{CALL}")
    [choice] = answer["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    assert (call["type"], call["function"]) == ("function", {"name": "now", "arguments": '{"a": 1}'})
    assert call["id"].startswith("call_")
    assert "reasoning_content" not in choice["message"]


async def test_a_thought_is_told_and_counted() -> None:
    answer = await answered(f"<think>\nHm.\n</think>\n\n{CALL}")
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"]) == ("Hm.", "Hm.")
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1
    num_thinking = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    within = len(tiny_tokenizer().encode("\nHm.\n</think>", add_bos=False))
    assert abs(num_thinking - within) <= 2
    assert num_thinking < answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("interval", [1, 3, 64])
async def test_events_add_up_to_the_answer(interval: int) -> None:
    output = f"<think>\nHm.\n</think>\n\nI look. {CALL}\n{CALL}"
    whole = (await answered(output))["choices"][0]["message"]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, "stream": True}
    response = await http(output).post(Route.CHAT, {**body, "stream_interval": interval})
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    for name in ("reasoning_content", "reasoning"):
        assert "".join(delta.get(name, "") for delta in deltas) == whole[name]
    calls: dict[int, str] = {}
    for part in (part for delta in deltas for part in delta.get("tool_calls", ())):
        calls[part["index"]] = calls.get(part["index"], "") + part["function"]["arguments"]
    assert list(calls.values()) == [call["function"]["arguments"] for call in whole["tool_calls"]]
    assert json.loads(lines[-2])["choices"][0]["finish_reason"] == "tool_calls"


async def test_without_tools_what_looks_like_a_call_is_text() -> None:
    answer = await answered(CALL, tools=None)
    assert answer["choices"][0]["message"]["content"] == CALL
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_the_history_reaches_the_template() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "late", "name": "now"},
    ]
    front = http("ok")
    assert (await front.post(Route.CHAT, {"messages": messages, "tools": TOOLS})).status_code == 200
    [request] = front.engine.requests
    text = tiny_tokenizer().decode(request.prompt_ids)
    seen = json.loads(text[: text.index("]", text.index("late")) + 1])
    assert seen[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {"a": 1}}
    assert seen[1]["content"] is None
    assert seen[1]["reasoning_content"] == "Hm"
    assert (seen[2]["role"], seen[2]["tool_call_id"], seen[2]["name"]) == ("tool", "call_1", "now")


async def test_a_template_without_tools_gets_them_told() -> None:
    front = http("ok", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert (
        await front.post(Route.CHAT, {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS})
    ).status_code == 200
    [request] = front.engine.requests
    text = tiny_tokenizer().decode(request.prompt_ids)
    assert text.startswith("system: ")
    assert '"name": "now"' in text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "["}}]},
            "messages",
        ),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "messages"),
        ({"role": "user", "content": "x", "tool_call_id": "a"}, "messages"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "messages[0].tool_calls[0].type"),
    ],
)
async def test_a_history_that_cannot_be_is_refused(more: dict[str, Any], param: str) -> None:
    response = await http("ok").post(Route.CHAT, {"messages": [more]})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


async def test_for_balancers() -> None:
    async with http("ok").client() as client:
        assert (await client.get("/ping")).json() == {}
        assert (await client.get("/load")).json() == {"server_load": 0}
