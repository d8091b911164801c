"""What the output must be: OpenAI's response_format, vLLM's structured_outputs, and others' names."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coordinator.api.http.json import Body, checked_text, invalid
from expertmesh.v1 import generation_pb2 as pb

# Kinds of constraint, by vLLM's older fields, and by those of llama.cpp and SGLang.
_KIND_OF_FIELD = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json_schema",
    "grammar": "grammar",
    "regex": "regex",
    "ebnf": "grammar",
}
# What llama.cpp's clients send when they want none.
_NONE_WHEN_EMPTY = ("grammar", "json_schema")
_KIND_OF_OUTPUTS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
_NOT_IN_OUTPUTS = {
    "structural_tag": "use grammar",
    "whitespace_pattern": "use disable_any_whitespace",
    "disable_additional_properties": "say additionalProperties in the schema",
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A constraint of the body: the field that asks for it, its kind and its value."""

    field: str
    kind: str
    value: Any = None


def fill_constraint(body: Body, constraint: pb.OutputConstraint) -> str:
    """Returns the field that asks for it, empty where none does. Raises ApiError naming the parameter; what a
    schema or a grammar says is looked at later."""
    wanted = [*_of_response_format(body), *_of_outputs(body, constraint), *_of_fields(body)]
    if len(wanted) > 1:
        raise invalid(wanted[1].field, f"only one constraint can be given, and {wanted[0].field} is one")
    for each in wanted:
        _set(constraint, each)
    if body.boolean("disable_any_whitespace"):
        constraint.compact_json = True
    return wanted[0].field if wanted else ""


def _of_response_format(body: Body) -> Iterator[_Wanted]:
    data = body.mapping("response_format")
    if data is None:
        return
    inner = Body(data, "response_format.")
    kind, wrapper = inner.text("type"), inner.mapping("json_schema")
    if kind not in ("text", "json_object", "json_schema"):
        raise invalid("response_format", "type is not text, json_object or json_schema")
    inner.refuse_others(
        schema="response_format.json_schema.schema", value="response_format.json_schema.schema"
    )
    if kind == "json_object":
        yield _Wanted("response_format", "json_object")
    elif kind == "json_schema":
        yield _Wanted("response_format", "json_schema", _schema(wrapper))
    if kind != "json_schema" and wrapper is not None:
        raise invalid("response_format.json_schema", f"is given, and type is {kind}")


def _schema(data: dict[str, Any] | None) -> dict[str, Any] | bool:
    if data is None or not isinstance(data.get("schema"), (dict, bool)):
        raise invalid("response_format", "json_schema.schema is required")
    wrapper = Body(data, "response_format.json_schema.")
    schema: dict[str, Any] | bool = wrapper.raw("schema")
    # A schema is always kept to.
    wrapper.boolean("strict")
    for name in ("name", "description"):
        wrapper.text(name)
    wrapper.refuse_others()
    return schema


def _of_outputs(body: Body, constraint: pb.OutputConstraint) -> Iterator[_Wanted]:
    data = body.mapping("structured_outputs")
    if data is None:
        return
    outputs = Body(data, "structured_outputs.")
    outputs.refuse(_NOT_IN_OUTPUTS)
    outputs.boolean("disable_fallback")
    for name, kind in _KIND_OF_OUTPUTS.items():
        if (value := outputs.raw(name)) is not None:
            yield _Wanted(outputs.path(name), kind, value)
    if outputs.boolean("json_object"):
        yield _Wanted(outputs.path("json_object"), "json_object")
    if outputs.boolean("disable_any_whitespace"):
        constraint.compact_json = True
    outputs.refuse_others(schema="json", json_schema="json", choices="choice")


def _of_fields(body: Body) -> Iterator[_Wanted]:
    for name, kind in _KIND_OF_FIELD.items():
        value = body.raw(name)
        if value is not None and not (value == "" and name in _NONE_WHEN_EMPTY):
            yield _Wanted(name, kind, value)


def _set(constraint: pb.OutputConstraint, wanted: _Wanted) -> None:
    field, kind, value = wanted.field, wanted.kind, wanted.value
    if kind == "json_object":
        constraint.json_object.SetInParent()
    elif kind == "choice":
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise invalid(field, "is not an array of strings")
        constraint.choice.SetInParent()
        constraint.choice.choices.extend(checked_text(each, field) for each in value)
    else:
        text = json.dumps(value) if kind == "json_schema" and not isinstance(value, str) else value
        if not isinstance(text, str):
            raise invalid(field, "is not a string")
        setattr(constraint, kind, checked_text(text, field))
