"""One call of a tool, read piece by piece, for each kind of body.

A reader is given text as it comes and says what is certain. `rest` is what it has not used; once `done`, it
belongs to what follows. `failed`: the text is no such call, and `rest` is all of it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from coordinator.tools.forms import Body, NamedBody, ObjectBody, TagBody
from coordinator.tools.json_scan import JsonScan
from coordinator.tools.pieces import Arguments, CallBegun, Piece

# Name -> the JSON schema of its arguments.
Tools = Mapping[str, Mapping[str, Any]]
# Longer names are none.
MAX_NAME = 256

_HEADER = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


class Reader(Protocol):
    """Of one call."""

    rest: str
    done: bool
    failed: bool

    @property
    def begun(self) -> bool:
        """Whether the call was told of; it does not fail then."""

    def push(self, text: str) -> list[Piece]:
        """What the text makes certain."""


class ObjectReader:
    """`{"name": ..., "arguments": {...}}`; in another order, or with more keys, it is told when it ends."""

    def __init__(self, tools: Tools) -> None:
        self.rest = ""
        self.done = False
        self.failed = False
        self._tools = tools
        self._whole = JsonScan()
        self._arguments: JsonScan | None = None
        self._num_scanned = 0

    @property
    def begun(self) -> bool:
        return self._arguments is not None

    def push(self, text: str) -> list[Piece]:
        self.rest += text
        found: list[Piece] = []
        if self._arguments is None:
            if self.rest.strip() and not self.rest.lstrip().startswith("{"):
                self.failed = True
                return []
            match = _HEADER.match(self.rest)
            name = None if match is None else _name(match[1])
            if match is None or name is None or name not in self._tools:
                return self._unordered()
            found.append(CallBegun(name))
            self._arguments = JsonScan()
            self._whole = JsonScan()
            self._whole.feed(self.rest[: match.end()])
            self.rest = self.rest[match.end() :]
        return found + self._ordered()

    def _ordered(self) -> list[Piece]:
        assert self._arguments is not None
        found: list[Piece] = []
        if not self._arguments.ended:
            count = self._arguments.feed(self.rest)
            self._whole.feed(self.rest[:count])
            if count:
                found.append(Arguments(self.rest[:count]))
            self.rest = self.rest[count:]
        if self._arguments.ended:
            count = self._whole.feed(self.rest)
            self.rest = self.rest[count:]
            self.done = self._whole.ended
        return found

    def _unordered(self) -> list[Piece]:
        """Nothing is known before the end."""
        count = self._whole.feed(self.rest[self._num_scanned :])
        self._num_scanned += count
        if not self._whole.ended:
            return []
        call = _object(self.rest[: self._num_scanned])
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _object(arguments)
        if not isinstance(name, str) or name not in self._tools or not isinstance(arguments, dict):
            self.failed = True
            return []
        self.rest, self.done = self.rest[self._num_scanned :], True
        return [CallBegun(name), Arguments(json.dumps(arguments, ensure_ascii=False))]


class NamedReader:
    """The name, a mark, and the arguments as JSON."""

    def __init__(self, body: NamedBody, tools: Tools) -> None:
        self.rest = ""
        self.done = False
        self.failed = False
        self._body = body
        self._tools = tools
        self._arguments: JsonScan | None = None

    @property
    def begun(self) -> bool:
        return self._arguments is not None

    def push(self, text: str) -> list[Piece]:
        self.rest += text
        found: list[Piece] = []
        if self._arguments is None:
            begun = self._header()
            if begun is None:
                return []
            found.append(begun)
            self._arguments = JsonScan()
        if not self._arguments.ended:
            count = self._arguments.feed(self.rest)
            if count:
                found.append(Arguments(self.rest[:count]))
            self.rest = self.rest[count:]
        if self._arguments.ended:
            self._tail()
        return found

    def _header(self) -> CallBegun | None:
        before, between = self._body.before.strip(), self._body.between.strip()
        text = self.rest.lstrip()
        if not text.startswith(before):
            self.failed = not before.startswith(text)
            return None
        name, mark, rest = text[len(before) :].partition(between)
        if not mark:
            self.failed = len(name) > MAX_NAME
            return None
        rest = rest.lstrip()
        if not rest:
            return None
        if name.strip() not in self._tools or not rest.startswith("{"):
            self.failed = True
            return None
        self.rest = rest
        return CallBegun(name.strip())

    def _tail(self) -> None:
        """What stands behind the arguments, where it does."""
        after, text = self._body.after.strip(), self.rest.lstrip()
        if text.startswith(after):
            self.rest, self.done = text[len(after) :], True
        elif not after.startswith(text):
            self.done = True


class TagReader:
    """The name, and each argument between marks. An argument is told when it ends."""

    def __init__(self, body: TagBody, end: str, tools: Tools) -> None:
        """`end` is the mark behind the call."""
        self.rest = ""
        self.done = False
        self.failed = False
        self._body = body
        self._end = (body.after or end).strip()
        self._tools = tools
        self._name = ""
        self._num_arguments = 0

    @property
    def begun(self) -> bool:
        return bool(self._name)

    def push(self, text: str) -> list[Piece]:
        self.rest += text
        found: list[Piece] = []
        if not self._name and not self._header(found):
            return found
        while not self.done and self._argument(found):
            pass
        return found

    def _header(self, found: list[Piece]) -> bool:
        body, text = self._body, self.rest.lstrip()
        before = body.before.strip()
        if not text.startswith(before):
            self.failed = not before.startswith(text)
            return False
        text = text[len(before) :]
        ends = [place for mark in (body.between.strip() or "\n", body.key_before, self._end)
                if (place := text.find(mark)) >= 0]  # fmt: skip
        if not ends:
            self.failed = len(text) > MAX_NAME
            return False
        name = text[: min(ends)].strip()
        if name not in self._tools:
            self.failed = True
            return False
        self._name = name
        self.rest = text[min(ends) :].removeprefix(body.between.strip())
        found.append(CallBegun(name))
        return True

    def _argument(self, found: list[Piece]) -> bool:
        """One argument, or the end. False where more has to come."""
        body, text = self._body, self.rest.lstrip()
        if text.startswith(self._end):
            found.append(Arguments("}" if self._num_arguments else "{}"))
            self.rest = text[len(self._end) :] if body.after else text
            self.done = True
            return False
        if not text.startswith(body.key_before):
            if not any(mark.startswith(text) for mark in (body.key_before, self._end)):
                found.append(Arguments("}" if self._num_arguments else "{}"))
                self.rest, self.done = text, True
            return False
        match = self._value_pattern().match(text)
        if match is None:
            return False
        self.rest = text[match.end() :]
        key, value = match[1].strip(), _value(match[2], self._schema(match[1].strip()))
        comma = ", " if self._num_arguments else "{"
        self._num_arguments += 1
        found.append(Arguments(f"{comma}{json.dumps(key, ensure_ascii=False)}: {value}"))
        return True

    def _value_pattern(self) -> re.Pattern[str]:
        body = self._body
        marks = [re.escape(mark) for mark in body.key_after.split("\n") if mark]
        after_key = r"\s*".join(marks)
        return re.compile(
            rf"{re.escape(body.key_before)}(.*?){after_key}\n?(.*?)\n?{re.escape(body.value_after.strip())}",
            re.DOTALL,
        )

    def _schema(self, key: str) -> Mapping[str, Any]:
        properties = self._tools[self._name].get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        return schema if isinstance(schema, Mapping) else {}


def reader_of(body: Body, end: str, tools: Tools) -> Reader:
    """Of one call; `end` is the mark behind it."""
    match body:
        case ObjectBody():
            return ObjectReader(tools)
        case NamedBody():
            return NamedReader(body, tools)
        case TagBody():
            return TagReader(body, end, tools)


def _value(text: str, schema: Mapping[str, Any]) -> str:
    """The JSON text of an argument between marks: a text where the schema allows one, else what it is."""
    kinds = schema.get("type")
    if kinds == "string":
        return json.dumps(text, ensure_ascii=False)
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _name(quoted: str) -> str | None:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return None


def _object(text: str) -> dict[str, Any]:
    """Empty where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
