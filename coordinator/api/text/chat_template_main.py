"""A renderer's process: compiles the templates that its first frame holds, then renders one, frame by frame.

Jinja in its immutable sandbox, with what transformers 5.24 gives a template beside Jinja's own. The sandbox
keeps a template from the process, the process keeps it from the server. A reply is one byte, an Outcome, and
a text.
"""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coordinator.api.text.rendering import LIMITS, MAX_RENDERED_CHARS, Outcome
from coordinator.confined.child import run

MAX_WORDS = 200


def reply(outcome: Outcome, text: str = "") -> bytes:
    return bytes([outcome]) + text.encode(errors="surrogatepass")


class _RaisedError(Exception):
    """The template itself says that it cannot render these messages."""


class _Environment(ImmutableSandboxedEnvironment):
    """Without the ways to make much of little: `*` on text, powers; the sandbox bounds ranges itself."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
        if operator == "**" or isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
            raise jinja2.TemplateError(f"{operator} is not allowed here")
        return super().call_binop(context, operator, left, right)  # type: ignore[arg-type]


class _Generation(Extension):
    """`{% generation %}` marks what a model says, for training; its text is that of what it encloses."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)


class Renderer:
    """Takes sources first, then variables; both as JSON. The sources are `default` and, where conversations
    with tools have a template of their own, `tool_use`."""

    def __init__(self) -> None:
        self._template: jinja2.Template | None = None
        self._for_tools: jinja2.Template | None = None
        self._refusal: bytes | None = None

    def __call__(self, question: bytes) -> bytes:
        """Every error ends here: a template fails in any way that Python can."""
        is_first = self._template is None and self._refusal is None
        try:
            answer = self._compiled(question) if is_first else self._rendered(question)
        except MemoryError:
            answer = reply(Outcome.OUT_OF_MEMORY)
        except _RaisedError as error:
            answer = reply(Outcome.FAILED, str(error)[:MAX_WORDS])
        except jinja2.TemplateSyntaxError as error:
            which = "" if error.name in (None, "default") else f"template {error.name}: "
            words = f"{which}line {error.lineno}: {error.message}"
            answer = reply(Outcome.NO_TEMPLATE, words[:MAX_WORDS])
        except RecursionError:
            answer = reply(Outcome.TOO_DEEP)
        except Exception as error:  # noqa: BLE001
            # A template that does not compile though its syntax is right nests more than Python can.
            outcome = Outcome.TOO_DEEP if is_first else Outcome.FAILED
            answer = reply(outcome, f"{type(error).__name__}: {error}"[:MAX_WORDS])
        if is_first and self._template is None:
            self._refusal = answer
        return answer

    def _compiled(self, question: bytes) -> bytes:
        sources: dict[str, str] = json.loads(question)
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
        found = {name: _template(environment, name, source) for name, source in sources.items()}
        self._for_tools = found.get("tool_use", found["default"])
        self._template = found["default"]
        return reply(Outcome.DONE)

    def _rendered(self, question: bytes) -> bytes:
        if self._template is None:
            assert self._refusal is not None
            return self._refusal
        variables: dict[str, Any] = json.loads(question)
        parts: list[str] = []
        num_chars = 0
        template = self._template if variables.get("tools") is None else self._for_tools
        assert template is not None
        for part in template.generate(**variables):
            num_chars += len(part)
            if num_chars > MAX_RENDERED_CHARS:
                return reply(Outcome.TOO_LONG)
            parts.append(part)
        return reply(Outcome.DONE, "".join(parts))


def _template(environment: jinja2.Environment, name: str, source: str) -> jinja2.Template:
    """Its errors say which one it is."""
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        error.name = name
        raise


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter of this name escapes what HTML would misread."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    """The machine's local time."""
    return datetime.now().astimezone().strftime(form)


def _raise(message: object) -> NoReturn:
    raise _RaisedError(message)


if __name__ == "__main__":
    run(Renderer(), LIMITS)
