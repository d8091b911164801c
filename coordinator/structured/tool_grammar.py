"""Calls of tools as a grammar: each family's form, with every tool's name and the schema of its arguments.

A mark that is a special token of the vocabulary is that token; any other is its text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.engine.messages.errors import ConstraintError
from coordinator.structured.json_schema import parse_schema
from coordinator.structured.kept_schema import kept_schema
from coordinator.tools.forms import FORMS, CallForm, NamedBody, ObjectBody, TagBody

KIND = "tools"
MAX_BYTES = 256 << 10
MAX_TOOLS = 128
# Before the first mark, which a token of the vocabulary may hold together with white space.
_LEAD = r"LEAD: /[ \n\r\t]{1,8}/"

# Text of a special token -> its id.
Specials = Mapping[str, int]
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """`lark` names the schemas `schemas` by their keys."""

    lark: str
    schemas: Mapping[str, Schema]


def tool_grammar(text: str, specials: Specials) -> ToolGrammar:
    """`text` is JSON: `form`, `tools` with `name`, `parameters` and `strict`, and whether calls may be
    `parallel`. Raises ConstraintError."""
    if len(text.encode()) > MAX_BYTES:
        raise ConstraintError(f"has {len(text.encode())} bytes, more than {MAX_BYTES}")
    try:
        asked = json.loads(text)
        form, tools, several = FORMS[asked["form"]], list(asked["tools"]), bool(asked["parallel"])
        named = [(str(tool["name"]), _schema(tool)) for tool in tools]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConstraintError("is no list of tools") from None
    if not 1 <= len(named) <= MAX_TOOLS:
        raise ConstraintError(f"{len(named)} tools are not in [1, {MAX_TOOLS}]")
    return _Writer(form, specials).written(named, several=several)


def _schema(tool: Mapping[str, Any]) -> Schema:
    parameters = tool.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ConstraintError("parameters are not an object")
    try:
        found = parse_schema(json.dumps(parameters if tool.get("strict") else kept_schema(parameters)))
    except ConstraintError as error:
        raise ConstraintError(f"{tool['name']!s}: {error}") from None
    return {"type": "object", **found}


class _Writer:
    """Writes one grammar. Rules are lines; the schemas get names."""

    def __init__(self, form: CallForm, specials: Specials) -> None:
        self._form = form
        self._specials = specials
        texts = sorted(specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._rules: list[str] = []
        self._schemas: dict[str, Schema] = {}

    def written(self, tools: Sequence[tuple[str, Schema]], *, several: bool) -> ToolGrammar:
        form = self._form
        more = f"({self._text(form.separator)} call)*" if several else ""
        whole = f"start: LEAD? {self._text(form.opening)} call {more} {self._text(form.closing)}"
        bodies = " | ".join(f"call_{number}" for number in range(len(tools)))
        call = f"call: {self._text(form.before)} ({bodies}) {self._text(form.after)}"
        for number, (name, schema) in enumerate(tools):
            self._rules.append(f"call_{number}: {self._body(number, name, schema)}")
        return ToolGrammar("\n".join([whole, call, *self._rules, _LEAD]), self._schemas)

    def _body(self, number: int, name: str, schema: Schema) -> str:
        match self._form.body:
            case ObjectBody(before, between, after):
                head = self._text(before + json.dumps(name, ensure_ascii=False) + between)
                return f"{head} {self._json(f'args_{number}', schema)} {self._text(after)}"
            case NamedBody(before, between, after):
                head = self._text(before + name + between)
                return f"{head} {self._json(f'args_{number}', schema)} {self._text(after)}"
            case TagBody() as body:
                values = " ".join(self._values(body, number, schema))
                return f"{self._text(body.before + name + body.between)} {values} {self._text(body.after)}"

    def _values(self, body: TagBody, number: int, schema: Schema) -> Iterator[str]:
        """Each property's value between its marks, in the order of the schema."""
        properties, required = schema.get("properties"), schema.get("required")
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        for place, (key, value) in enumerate(properties.items() if isinstance(properties, dict) else ()):
            rule = f"value_{number}_{place}"
            self._rules.append(f"{rule}: {self._value(body, rule, key, {**definitions, **_object(value)})}")
            yield rule if isinstance(required, list) and key in required else f"{rule}?"

    def _value(self, body: TagBody, rule: str, key: str, schema: Schema) -> str:
        head = self._text(body.key_before + key + body.key_after)
        if schema.get("type") != "string" or "enum" in schema or "const" in schema:
            return f"{head} {self._plain(rule, schema)} {self._text(body.value_after)}"
        mark = body.value_after.strip()
        _, _, after = body.value_after.partition(mark)
        if mark in self._specials:
            self._rules.append(f"text_{rule}: /(?s:.*)/")
            return f"{head} text_{rule} {self._text(body.value_after)}"
        # A line's end before the mark belongs to the text: the mark alone ends it.
        self._rules.append(f"text_{rule}[suffix={_quoted(mark)}]: /(?s:.*)/")
        return f"{head} text_{rule} {self._text(after)}"

    def _plain(self, rule: str, schema: Schema) -> str:
        """A text among some is written as it is, all else as JSON."""
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(choices, list) and choices and all(isinstance(each, str) for each in choices):
            return f"({' | '.join(self._text(each) or _quoted('') for each in choices)})"
        return self._json(rule, schema)

    def _json(self, name: str, schema: Schema) -> str:
        self._schemas[name] = schema
        return f"@{name}"

    def _text(self, text: str) -> str:
        """A text as terms of a rule, its special tokens by their ids."""
        terms, place = [], 0
        for found in self._special.finditer(text) if self._special else ():
            terms += [_quoted(text[place : found.start()])] if found.start() > place else []
            terms.append(f"<[{self._specials[found[0]]}]>")
            place = found.end()
        return " ".join([*terms, _quoted(text[place:])] if place < len(text) else terms)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _object(value: object) -> Schema:
    return value if isinstance(value, dict) else {}
