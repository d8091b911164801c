"""Tools for a model whose chat template knows nothing of them: they are told in the first message."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

M = TypeVar("M", bound=Mapping[str, Any])

_WORDS = """You can call these tools, one JSON object each:
{tools}
To call tools, answer with nothing but a JSON array of calls, \
[{{"name": "the tool's name", "arguments": {{"argument": "value"}}}}]. Otherwise answer as usual."""


def with_tools_told(messages: Sequence[M], tools: Sequence[Mapping[str, Any]]) -> list[M]:
    """The conversation with the tools told in a system message: the first one where there is one. Calls and
    their answers become texts."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    words = _WORDS.format(tools=lines)
    turns = [_plain(message) for message in messages]
    if turns and turns[0]["role"] == "system":
        turns[0] = {**turns[0], "content": f"{turns[0]['content']}\n\n{words}"}
    else:
        turns.insert(0, {"role": "system", "content": words})
    return cast("list[M]", turns)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if calls:
        written = [{key: call["function"][key] for key in ("name", "arguments")} for call in calls]
        return {"role": "assistant", "content": json.dumps(written, ensure_ascii=False)}
    if message["role"] == "tool":
        return {"role": "user", "content": f"Answer of the tool: {message['content']}"}
    return dict(message)
