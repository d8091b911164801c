"""Tools of OpenAI's chat: what a body says of them, and how an answer shows calls and thoughts."""

import json
from typing import Any

from coordinator.api.http.json import Body, invalid, unsupported
from expertmesh.v1 import generation_pb2 as pb

_MODES = {
    "auto": pb.ToolChoice.MODE_AUTO,
    "none": pb.ToolChoice.MODE_NONE,
    "required": pb.ToolChoice.MODE_REQUIRED,
    # Mistral's word for it.
    "any": pb.ToolChoice.MODE_REQUIRED,
}


def fill_tools(body: Body, chat: pb.ChatPrompt) -> bool:
    """Returns whether the body asks in OpenAI's old way, by `functions`. Raises ApiError naming the
    parameter."""
    tools, functions = body.array("tools"), body.array("functions")
    choice, old_choice = body.raw("tool_choice"), body.raw("function_call")
    if tools and functions:
        raise invalid("functions", "are given beside tools")
    for index, tool in enumerate(tools or ()):
        _fill_tool(tool, f"tools[{index}]", chat.tools.add())
    for index, function in enumerate(functions or ()):
        _fill_function(function, f"functions[{index}]", chat.tools.add())
    if choice is not None:
        _fill_choice(choice, chat)
    elif old_choice is not None:
        _fill_old_choice(old_choice, chat.tool_choice)
    parallel = body.boolean("parallel_tool_calls")
    if parallel is not None:
        chat.parallel_tool_calls = parallel
    if functions:
        # There is one place for a call.
        chat.parallel_tool_calls = False
    return bool(functions)


def _fill_tool(tool: object, path: str, into: pb.Tool) -> None:
    if not isinstance(tool, dict):
        raise invalid(path, "is not an object")
    outer = Body(tool, f"{path}.")
    kind = outer.text("type")
    if kind != "function":
        raise unsupported(f"{path}.type", "is not function, the only kind of tool there is")
    function = outer.mapping("function")
    if function is None:
        raise invalid(f"{path}.function", "is required")
    outer.raw("cache_control")
    outer.refuse_others()
    _fill_function(function, f"{path}.function", into)


def _fill_function(function: object, path: str, into: pb.Tool) -> None:
    if not isinstance(function, dict):
        raise invalid(path, "is not an object")
    inner = Body(function, f"{path}.")
    into.name = inner.text("name") or ""
    into.description = inner.text("description") or ""
    parameters = inner.mapping("parameters")
    if parameters:
        into.parameters = json.dumps(parameters)
    strict = inner.boolean("strict")
    if strict is not None:
        into.strict = strict
    inner.refuse_others(input_schema="parameters")


def _fill_choice(choice: object, chat: pb.ChatPrompt) -> None:
    if isinstance(choice, str):
        if choice not in _MODES:
            raise invalid("tool_choice", "is not none, auto, required or an object")
        chat.tool_choice.mode = _MODES[choice]
        return
    if not isinstance(choice, dict):
        raise invalid("tool_choice", "is neither a string nor an object")
    outer = Body(choice, "tool_choice.")
    kind = outer.text("type")
    if kind == "allowed_tools":
        _fill_allowed(outer, chat)
        return
    if kind != "function":
        raise unsupported("tool_choice.type", "is not function or allowed_tools")
    function = outer.mapping("function") or {}
    chat.tool_choice.name = Body(function, "tool_choice.function.").text("name") or ""
    if not chat.tool_choice.name:
        raise invalid("tool_choice.function.name", "is required")
    outer.refuse_others()


def _fill_allowed(outer: Body, chat: pb.ChatPrompt) -> None:
    """OpenAI's subset of the tools: the others are as if they were not given."""
    allowed = outer.mapping("allowed_tools")
    if allowed is None:
        raise invalid("tool_choice.allowed_tools", "is required")
    inner = Body(allowed, "tool_choice.allowed_tools.")
    mode, tools = inner.text("mode"), inner.array("tools") or []
    if mode not in ("auto", "required"):
        raise invalid("tool_choice.allowed_tools.mode", "is not auto or required")
    names = set()
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        names.add(function.get("name") if isinstance(function, dict) else None)
    known = {tool.name for tool in chat.tools}
    if not names <= known:
        raise invalid("tool_choice.allowed_tools.tools", "names a tool that is not among the tools")
    kept = [tool for tool in chat.tools if tool.name in names]
    del chat.tools[:]
    chat.tools.extend(kept)
    chat.tool_choice.mode = _MODES[mode]


def _fill_old_choice(choice: object, into: pb.ToolChoice) -> None:
    if isinstance(choice, str):
        if choice not in ("auto", "none"):
            raise invalid("function_call", "is not none, auto or an object")
        into.mode = _MODES[choice]
        return
    name = choice.get("name") if isinstance(choice, dict) else None
    if not isinstance(name, str) or not name:
        raise invalid("function_call", "has no name")
    into.name = name


def thinking_variables(body: Body) -> dict[str, Any]:
    """What is told to the template of how hard to think. Raises ApiError naming the parameter."""
    found: dict[str, Any] = {}
    effort = body.text("reasoning_effort")
    if effort is not None:
        found["reasoning_effort"] = effort
        if effort == "none":
            found["enable_thinking"] = False
    enabled = body.boolean("enable_thinking")
    if enabled is not None:
        found["enable_thinking"] = enabled
    budget = body.integer("thinking_budget")
    if budget is None:
        budget = body.integer("thinking_token_budget")
    if budget is not None:
        found["thinking_budget"] = budget
    return found


def fill_turn(turn: Body, into: pb.ChatPrompt.Message) -> None:
    """What a message has of calls, of an answer to one, and of thoughts. Raises ApiError naming the field."""
    for index, call in enumerate(turn.array("tool_calls") or ()):
        _fill_call(call, turn.path(f"tool_calls[{index}]"), into.tool_calls.add())
    old = turn.mapping("function_call")
    if old is not None:
        _fill_called(Body(old, turn.path("function_call.")), into.tool_calls.add())
    into.tool_call_id = turn.text("tool_call_id") or ""
    into.name = turn.text("name") or ""
    spellings = [turn.text(name) for name in ("reasoning_content", "reasoning")]
    into.reasoning = next(filter(None, spellings), "")


def _fill_call(call: object, path: str, into: pb.ToolCall) -> None:
    if not isinstance(call, dict):
        raise invalid(path, "is not an object")
    outer = Body(call, f"{path}.")
    if outer.text("type") not in (None, "function"):
        raise unsupported(f"{path}.type", "is not function, the only kind of call there is")
    into.id = outer.text("id") or ""
    outer.raw("index")
    function = outer.mapping("function")
    if function is None:
        raise invalid(f"{path}.function", "is required")
    _fill_called(Body(function, f"{path}.function."), into)
    outer.refuse_others()


def _fill_called(function: Body, into: pb.ToolCall) -> None:
    into.name = function.text("name") or ""
    arguments = function.raw("arguments")
    # Ollama's clients send them as they are.
    text = json.dumps(arguments) if isinstance(arguments, dict) else function.text("arguments")
    into.arguments = text or ""
    function.refuse_others()


def shown_turn(output: pb.SequenceOutput, *, is_old: bool) -> dict[str, Any]:
    """The assistant's message."""
    calls = [_shown_call(call) for call in output.tool_calls]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls and not output.text else output.text,
        "refusal": None,
    }
    message |= _shown_thought(output.reasoning)
    if calls:
        message |= {"function_call": calls[0]["function"]} if is_old else {"tool_calls": calls}
    return message


def shown_delta(delta: pb.SequenceDelta, *, is_old: bool) -> dict[str, Any]:
    """What a chunk adds to it."""
    found = _shown_thought(delta.reasoning)
    if delta.text or not (found or delta.tool_calls):
        found["content"] = delta.text
    if delta.tool_calls and is_old:
        found["function_call"] = _shown_function(delta.tool_calls[0])
    elif delta.tool_calls:
        found["tool_calls"] = [_shown_part(call) for call in delta.tool_calls]
    return found


def _shown_thought(text: str) -> dict[str, Any]:
    """By both names that clients read: DeepSeek's, and OpenRouter's."""
    return {"reasoning_content": text, "reasoning": text} if text else {}


def _shown_call(call: pb.ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _shown_part(call: pb.ToolCallDelta) -> dict[str, Any]:
    begun = {"id": call.id, "type": "function"} if call.id else {}
    return {"index": call.index, **begun, "function": _shown_function(call)}


def _shown_function(call: pb.ToolCallDelta) -> dict[str, Any]:
    return {**({"name": call.name} if call.name else {}), "arguments": call.arguments}
