"""Tools of a conversation: limits, how the output is read, and what it has to be."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.validation.violations import Violations
from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import ConstraintSource, FreePart
from coordinator.tools.output_reader import OutputForm
from coordinator.tools.readers import Tools
from coordinator.tools.thoughts import is_thinking
from expertmesh.v1 import generation_pb2 as pb

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 192 << 10
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_ID = 128
_ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object"}


def check_tools(field: str, chat: pb.ChatPrompt, violations: Violations) -> None:
    """Tools, the choice among them, and calls and answers in the history."""
    _check_history(field, chat.messages, violations)
    choice, names = chat.tool_choice, [tool.name for tool in chat.tools]
    if len(names) > MAX_TOOLS:
        violations.add(f"{field}.tools", f"{len(names)} tools are more than {MAX_TOOLS}")
        return
    num_bytes = sum(tool.ByteSize() for tool in chat.tools)
    if num_bytes > MAX_TOOLS_BYTES:
        violations.add(f"{field}.tools", f"{num_bytes} bytes are more than {MAX_TOOLS_BYTES}")
        return
    for index, tool in enumerate(chat.tools):
        _check_tool(f"{field}.tools[{index}]", tool, tool.name in names[:index], violations)
    if choice.WhichOneof("choice") == "name" and choice.name not in names:
        violations.add(f"{field}.tool_choice", "names a tool that is not among the tools")
    if choice.mode == pb.ToolChoice.MODE_REQUIRED and not names:
        violations.add(f"{field}.tool_choice", "asks for a call, and there are no tools")
    if must_call(chat) and chat.continue_final_message:
        violations.add(f"{field}.tool_choice", "asks for a call, and a message is to be continued")


def _check_tool(field: str, tool: pb.Tool, is_known: bool, violations: Violations) -> None:
    if not _NAME.fullmatch(tool.name):
        violations.add(f"{field}.name", f"is not of the form {_NAME.pattern}")
    elif is_known:
        violations.add(f"{field}.name", "is that of another tool as well")
    if not tool.parameters:
        return
    try:
        schema = json.loads(tool.parameters)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        violations.add(f"{field}.parameters", "is not a JSON object")
    elif schema.get("type", "object") != "object":
        violations.add(f"{field}.parameters", 'is a schema of something else than type "object"')


def _check_history(field: str, messages: Iterable[pb.ChatPrompt.Message], violations: Violations) -> None:
    for index, message in enumerate(messages):
        path = f"{field}.messages[{index}]"
        if message.tool_calls and message.role != "assistant":
            violations.add(f"{path}.tool_calls", "are the assistant's alone")
        if message.tool_call_id and message.role != "tool":
            violations.add(f"{path}.tool_call_id", "is of a message of role tool alone")
        if len(message.tool_calls) > MAX_TOOLS:
            violations.add(f"{path}.tool_calls", f"{len(message.tool_calls)} are more than {MAX_TOOLS}")
            continue
        if max(len(message.tool_call_id), len(message.name)) > _MAX_ID:
            violations.add(path, f"has a name or an id of more than {_MAX_ID} characters")
        for number, call in enumerate(message.tool_calls):
            where = f"{path}.tool_calls[{number}]"
            if not 1 <= len(call.name) <= _MAX_ID or len(call.id) > _MAX_ID:
                violations.add(where, f"has a name or an id that is not of 1 to {_MAX_ID} characters")
            if _arguments(call.arguments) is None:
                violations.add(f"{where}.arguments", "is not a JSON object")


def must_call(chat: pb.ChatPrompt) -> bool:
    """Whether the output has to be a call."""
    choice = chat.tool_choice
    return choice.mode == pb.ToolChoice.MODE_REQUIRED or choice.WhichOneof("choice") == "name"


def offered(chat: pb.ChatPrompt) -> list[pb.Tool]:
    """The tools that the model is told of."""
    return [] if chat.tool_choice.mode == pb.ToolChoice.MODE_NONE else list(chat.tools)


def described(tool: pb.Tool) -> dict[str, Any]:
    """A tool, as templates expect it."""
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = json.loads(tool.parameters) if tool.parameters else _NO_ARGUMENTS
    return {"type": "function", "function": function}


_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}


def earlier_calls(calls: Iterable[pb.ToolCall], *, as_text: bool) -> list[dict[str, Any]]:
    """Calls of the history, as templates expect them: their arguments as an object, or as text."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": (call.arguments or "{}") if as_text else _arguments(call.arguments),
            },
        }
        for call in calls
    ]


def _arguments(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def output_form(message: pb.GenerateRequest, served: ServedModel, rendered: str) -> OutputForm | None:
    """How the output of a checked conversation is read; None where all of it is text. `rendered` is the
    prompt."""
    template = served.chat_template
    if message.WhichOneof("prompt") != "chat" or template is None:
        return None
    tools: Tools = {tool.name: _schema(tool) for tool in offered(message.chat)}
    thoughts = template.thoughts
    if not tools and thoughts is None:
        return None
    begun = thoughts is not None and is_thinking(thoughts, rendered)
    return OutputForm(template.call_form, tools, thoughts, is_thinking=begun)


def calls_constraint(
    chat: pb.ChatPrompt, served: ServedModel, form: OutputForm | None
) -> ConstraintSource | None:
    """What calls have to be: all of the output where it must be calls, else what follows their mark. None
    where nothing is asked of them. Raises ApiError."""
    if form is None or not form.tools or form.calls is None:
        return None
    must = must_call(chat)
    if served.constraints is None or (not must and not form.calls.mark):
        if must:
            raise ApiError.of(
                Reason.UNSUPPORTED_FEATURE, "is not supported by this server", field="prompt.chat.tool_choice"
            )
        return None
    name = chat.tool_choice.name
    asked = [tool for tool in offered(chat) if not name or tool.name == name]
    parallel = not chat.HasField("parallel_tool_calls") or chat.parallel_tool_calls
    several = parallel and not name
    texts = (_call_source(form.calls.name, asked, several=several),)
    source = ConstraintSource("tools", texts, free=free_part(form, until="" if must else form.calls.mark))
    try:
        served.constraints.check(source)
    except ConstraintError as error:
        raise ApiError.of(Reason.INVALID_CONSTRAINT, str(error), field="prompt.chat.tools") from None
    return source


def free_part(form: OutputForm | None, until: str = "") -> FreePart:
    """What of an output no constraint is about: a thought, and the text before a mark."""
    if form is None or form.thoughts is None:
        return FreePart(until=until)
    marks = form.thoughts
    return FreePart(marks.begin, marks.end, is_thinking=form.is_thinking, until=until)


def _call_source(form: str, tools: Iterable[pb.Tool], *, several: bool) -> str:
    named = [{"name": tool.name, "parameters": _schema(tool), "strict": tool.strict} for tool in tools]
    return json.dumps({"form": form, "tools": named, "parallel": several})


def _schema(tool: pb.Tool) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(tool.parameters) if tool.parameters else _NO_ARGUMENTS
    return {"type": "object", **found} if found else _ANY_ARGUMENTS
