"""ChatTemplate: messages to the text that a model was trained on. Jinja in its immutable sandbox.

A template comes from whoever runs the server, messages from anybody. A special token that is spelled out in
a message becomes that token, as it does in every server whose template is plain text.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn, TypedDict

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moe_model.errors import ConfigError, UserError

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 4 << 20
# What is the server's to say; a request's own variables cannot take their place.
RESERVED_VARIABLES = ("messages", "add_generation_prompt", "bos_token", "eos_token")

# Put behind a message that is to be continued, to find its end: characters that no text has a use for.
END_MARK = "\ue000\uf8ff\ue000"

# Anything that JSON can hold.
JsonValue = object
NO_VARIABLES: Mapping[str, JsonValue] = MappingProxyType({})


class ChatTemplateError(UserError):
    """A template cannot render these messages."""


class ChatMessage(TypedDict):
    """One turn, as templates expect it."""

    role: str
    content: str


class _Environment(ImmutableSandboxedEnvironment):
    """Without the ways to make much of little: `*` on text, powers; the sandbox bounds ranges itself."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: object, operator: str, left: object, right: object) -> object:
        if operator == "**" or isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
            raise jinja2.TemplateError(f"{operator} is not allowed here")
        return super().call_binop(context, operator, left, right)  # type: ignore[arg-type]


class ChatTemplate:
    """A compiled template. Raises ConfigError when it is none."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ConfigError(f"chat template: {len(source)} characters are more than {MAX_TEMPLATE_CHARS}")
        environment = _Environment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        self.source = source
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"chat template: line {error.lineno}: {error.message}") from None

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, JsonValue] = NO_VARIABLES,
    ) -> str:
        """The prompt's text. May be called from several threads, where waiting is allowed.

        `continue_final_message` ends the text where the last message's content ends; then there is no
        generation prompt. `variables` are the request's own, none of them RESERVED_VARIABLES. Raises
        ChatTemplateError, whose text may hold the template's own words.
        """
        if continue_final_message:
            last = messages[-1]
            messages = [*messages[:-1], ChatMessage(role=last["role"], content=last["content"] + END_MARK)]
        given = {
            "tools": None,
            "documents": None,
            **variables,
            **self._special,
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        text = self._render(given)
        return _until_mark(text) if continue_final_message else text

    def _render(self, variables: Mapping[str, JsonValue]) -> str:
        parts: list[str] = []
        num_chars = 0
        try:
            for part in self._template.generate(**variables):
                num_chars += len(part)
                if num_chars > MAX_RENDERED_CHARS:
                    raise ChatTemplateError(f"more than {MAX_RENDERED_CHARS} characters")
                parts.append(part)
        except ChatTemplateError:
            raise
        # A template runs code of its own: it can fail in any way that Python can.
        except Exception as error:  # noqa: BLE001
            raise ChatTemplateError(f"{type(error).__name__}: {error}"[:200]) from None
        return "".join(parts)


def _until_mark(text: str) -> str:
    place = text.rfind(END_MARK)
    if place < 0:
        raise ChatTemplateError("the last message is not in the text")
    return text[:place]


def _raise(message: str) -> NoReturn:
    raise ChatTemplateError(str(message)[:200])
