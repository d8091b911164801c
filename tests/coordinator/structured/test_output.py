"""Whatever is drawn under a mask, the output is what was asked for."""

import ast
import json
import re
from typing import Any

import jsonschema
import pytest

from tests.coordinator.structured.walks import Compiling, check_walks

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["person", "company", 7, None]},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["city", "zip"],
            "additionalProperties": False,
        },
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["id", "kind", "address"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "boolean"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": PERSON,
    "recursive": TREE,
    "anything": {},
    "integer": {"type": "integer", "minimum": -5, "exclusiveMaximum": 1000},
    "number": {"type": "number", "minimum": 0, "maximum": 2.5},
    "multiple": {"type": "integer", "multipleOf": 7},
    "length": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[a-c]+(-[0-9])?$"},
    "search": {"type": "string", "pattern": "[0-9]x", "maxLength": 6},
    "constant": {"const": {"a": [1, "é\n<eos>", None]}},
    "types": {"type": ["null", "boolean", "integer"]},
    "one of": {"oneOf": [{"type": "integer"}, {"type": "array", "maxItems": 0}]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]},
    "tuple": {"prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False, "minItems": 2},
    "free keys": {"additionalProperties": {"type": "integer"}, "type": "object", "minProperties": 1},
    "key pattern": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "null"}},
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_output_satisfies_its_schema(compiling: Compiling, name: str) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])

    def is_valid(text: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(text)))
        except (ValueError, OverflowError):
            return False

    check_walks(compiling, compiling.compile("json_schema", json.dumps(SCHEMAS[name])), is_valid)


def test_a_json_object_is_an_object(compiling: Compiling) -> None:
    def is_object(text: str) -> bool:
        try:
            return isinstance(json.loads(text), dict)
        except ValueError:
            return False

    check_walks(compiling, compiling.compile("json_object", ""), is_object)


@pytest.mark.parametrize(
    "regex",
    [
        r"(\+[0-9]{1,3} )?[0-9]{3}-[0-9]{4}",
        r"^[a-z]+@(example|test)\.com$",
        r"a/b|c\"d|e'f\n|\\",
        r"(?i)yes|no",
        r"[^a-z]{1,4}",
        r"(a+)+b?",
        r"é{2}|日本|😀+",
        r"(?s).{0,3}",
        r"",
    ],
)
def test_output_matches_its_expression(compiling: Compiling, regex: str) -> None:
    check_walks(
        compiling,
        compiling.compile("regex", regex),
        lambda text: re.fullmatch(regex, text) is not None and not (regex[:1] == "^" and text[-1:] == "\n"),
    )


def test_output_is_one_of_the_choices(compiling: Compiling) -> None:
    choices = [
        "yes",
        "yes, sir",
        "no",
        'quo"te',
        "back\\slash",
        "li\nne",
        "<eos>",
        "日本",
        "x" * 40,
        "/",
        "no",
    ]
    constraint = compiling.compile("choice", choices)
    check_walks(compiling, constraint, lambda text: text in choices, num_walks=40, min_ended=30)


LARK = r"""
start: expr
expr: term (("+" | "-") term)*
term: factor (("*" | "/") factor)*
factor: NUMBER | "(" expr ")"
NUMBER: /[1-9][0-9]*/
"""
EBNF = r"""
# The same, as llama.cpp writes it.
root   ::= expr
expr   ::= term (("+" | "-") term)*
term   ::= factor (("*" | "/") factor)*
factor ::= number | "(" expr ")"
number ::= [1-9] [0-9]*
"""


@pytest.mark.parametrize("grammar", [LARK, EBNF], ids=["lark", "ebnf"])
def test_output_is_in_the_language_of_its_grammar(compiling: Compiling, grammar: str) -> None:
    def is_expression(text: str) -> bool:
        # Python has signs and tuples too, which no walk can reach.
        try:
            ast.parse(text, mode="eval")
        except SyntaxError:
            return False
        return True

    check_walks(compiling, compiling.compile("grammar", grammar), is_expression, num_walks=20)
