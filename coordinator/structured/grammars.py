"""From a request's constraint to the text that the library builds from. Pure; knows no vocabulary."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from llguidance import LLMatcher

from coordinator.engine.messages.errors import ConstraintError
from coordinator.engine.messages.request import ConstraintSource
from coordinator.structured.ebnf import is_ebnf, to_lark
from coordinator.structured.json_schema import parse_schema
from coordinator.structured.tool_grammar import KIND as TOOLS
from coordinator.structured.tool_grammar import tool_grammar

MAX_BYTES = 64 * 1024
NO_SPECIALS: Mapping[str, int] = MappingProxyType({})

# Without it the library allows only its own split into tokens where the text is certain. The mask shall hold
# every token that fits, and a long certain text must not be looked at as a whole.
OPTIONS = '%llguidance {"no_forcing": true}'

# Of white space between two tokens of JSON: a space, or a line's end and some. A model that likes it would
# otherwise fill its whole output.
MAX_GAP = 2

# How JSON is written.
_JSON_OPTIONS = {"lenient": False, "coerce_one_of": False}
SPACED_OPTIONS = {**_JSON_OPTIONS, "whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{MAX_GAP}}}"}
COMPACT_OPTIONS = {**_JSON_OPTIONS, "whitespace_flexible": False}


@dataclass(frozen=True, slots=True)
class LibraryGrammar:
    """What the library builds from; `is_verbatim` where lines and columns are those of the caller's text."""

    text: str
    is_verbatim: bool = False


def library_grammar(source: ConstraintSource, specials: Mapping[str, int] = NO_SPECIALS) -> LibraryGrammar:
    """`specials`: ids of special tokens by their texts. Raises ConstraintError; the message does not name the
    kind."""
    kind, texts = source.kind, source.texts
    if kind == TOOLS and len(texts) == 1:
        return _tools(texts[0], specials)
    try:
        num_bytes = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError:
        raise ConstraintError("has a lone surrogate, which is not Unicode") from None
    if num_bytes > MAX_BYTES:
        raise ConstraintError(f"has {num_bytes} bytes, more than {MAX_BYTES}")
    if kind == "choice":
        return _choice(texts)
    if kind == "json_object":
        return _json({"type": "object"}, source.compact_json)
    if kind not in KINDS or len(texts) != 1:
        raise ConstraintError(f"{kind!r} is no kind of constraint with such a value")
    if kind == "json_schema":
        return _json(parse_schema(texts[0]), source.compact_json)
    return _WRITERS[kind](texts[0])


def _json(schema: Mapping[str, Any], compact: bool) -> LibraryGrammar:
    options = COMPACT_OPTIONS if compact else SPACED_OPTIONS
    named = {"name": "json", "json_schema": {**schema, "x-guidance": options}}
    return _grammars(f"start: @json\n{OPTIONS}", named)


def _tools(text: str, specials: Mapping[str, int]) -> LibraryGrammar:
    grammar = tool_grammar(text, specials)
    schemas = [
        {"name": name, "json_schema": {**schema, "x-guidance": SPACED_OPTIONS}}
        for name, schema in grammar.schemas.items()
    ]
    return _grammars(f"{grammar.lark}\n{OPTIONS}", *schemas)


def _regex(text: str) -> LibraryGrammar:
    lark = json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]["lark_grammar"]
    return _grammars(f"{lark}\n{OPTIONS}")


def _choice(choices: Sequence[str]) -> LibraryGrammar:
    if not choices:
        raise ConstraintError("has no choices")
    alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices))
    return _grammars(f"start: CHOICE\nCHOICE: {alternatives}\n{OPTIONS}")


def _grammar(text: str) -> LibraryGrammar:
    if is_ebnf(text):
        return _grammars(f"{to_lark(text)}\n{OPTIONS}")
    return replace(_grammars(f"{text}\n{OPTIONS}"), is_verbatim=True)


def _grammars(lark: str, *others: Mapping[str, Any]) -> LibraryGrammar:
    try:
        return LibraryGrammar(json.dumps({"grammars": [{"lark_grammar": lark}, *others]}, allow_nan=False))
    except ValueError:
        raise ConstraintError("has a number that is too large") from None


_WRITERS: dict[str, Callable[[str], LibraryGrammar]] = {"regex": _regex, "grammar": _grammar}

KINDS = ("json_schema", "json_object", *_WRITERS, "choice")
