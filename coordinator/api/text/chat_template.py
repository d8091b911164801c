"""ChatTemplate: messages to the text that a model was trained on.

A template comes with a checkpoint, messages come from any client, and either may be made to hang or to
fill the memory: renderings run in processes with limits. A special token that is spelled out in a message
becomes that token, as it does in every server whose template is plain text.
"""

import json
import logging
import queue
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NotRequired, TypedDict

from coordinator.api.text.rendering import LIMITS, MAX_RENDERED_CHARS, Outcome
from coordinator.confined.errors import CrashedError, OutOfTimeError
from coordinator.confined.process import ConfinedProcess
from coordinator.tools.forms import CallForm, form_of
from coordinator.tools.thoughts import thoughts_of
from moe_model.errors import BusyError, ConfigError, UserError

logger = logging.getLogger(__name__)

MODULE = "coordinator.api.text.chat_template_main"
MAX_TEMPLATE_CHARS = 1 << 20
NUM_RENDERERS = 2
# By the clock, of one rendering; its time on a processor has a limit of its own, which is met first unless
# the machine is very busy.
RENDER_SECONDS = 1.0
WAIT_SECONDS = 1.0
# What is the server's to say; a request's own variables cannot take their place.
RESERVED_VARIABLES = ("messages", "add_generation_prompt", "bos_token", "eos_token")
# Put behind a message that is to be continued, to find its end: characters that no text has a use for.
END_MARK = "\ue000\uf8ff\ue000"

# Anything that JSON can hold.
JsonValue = object
NO_TOKENS: Mapping[str, str] = MappingProxyType({})
NO_VARIABLES: Mapping[str, JsonValue] = MappingProxyType({})


class ChatTemplateError(UserError):
    """A template cannot render these messages."""


class ChatTemplateLimitError(ChatTemplateError):
    """A rendering took more than it may. The message is one line, about the template by its name."""


class ChatMessage(TypedDict):
    """One turn, as templates expect it."""

    role: str
    # None: it only calls tools.
    content: str | None
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]


_TRIAL = {"messages": [ChatMessage(role="user", content="Hello")], "add_generation_prompt": True}
# By the clock: what is refused for good is not refused because the machine was busy.
_TRIAL_SECONDS = 10.0
_LIMITS = {
    Outcome.OUT_OF_MEMORY: f"takes more than {LIMITS.address_space >> 20} MiB",
    Outcome.TOO_LONG: f"writes more than {MAX_RENDERED_CHARS} characters",
    Outcome.TOO_DEEP: "is too large or too deeply nested",
}


class ChatTemplate:
    """A template with the processes that render it, which start when first needed. Thread-safe.

    `refusal` says why chat is not to be had with it; empty where it is. `call_form` and `thoughts` are how
    its model calls tools and thinks; `shows_tools`: it says what tools there are.
    """

    def __init__(
        self,
        source: str,
        *,
        for_tools: str | None = None,
        special_tokens: Mapping[str, str] = NO_TOKENS,
        name: str = "chat_template.jinja",
        call_form: CallForm | None = None,
    ) -> None:
        """`name` is the template's file; `for_tools` renders conversations with tools in its place. Special
        tokens are texts by name (`bos_token`). `call_form` None: the one that the template shows. Raises
        ConfigError for a template that is too large."""
        self.source = source
        self.refusal = ""
        self._title = f"chat template {name}"
        self._special = dict(special_tokens)
        sources = {"default": source} | ({} if for_tools is None else {"tool_use": for_tools})
        for text in sources.values():
            if len(text) > MAX_TEMPLATE_CHARS:
                raise ConfigError(f"chat template: {len(text)} characters are more than {MAX_TEMPLATE_CHARS}")
        all_sources = "\n".join(sources.values())
        self.call_form = call_form or form_of(all_sources)
        self.thoughts = thoughts_of(all_sources)
        self.shows_tools = "tools" in all_sources
        first = json.dumps(sources).encode()
        self._renderers = [ConfinedProcess(MODULE, first) for _ in range(NUM_RENDERERS)]
        # The one that was used last is asked first: it is there.
        self._free: queue.LifoQueue[ConfinedProcess] = queue.LifoQueue()
        for renderer in self._renderers:
            self._free.put(renderer)

    def try_out(self) -> None:
        """Renders a short conversation: what takes too much for that is refused from then on, with a warning.

        Raises ConfigError for a text that is no template.
        """
        try:
            self._render({"tools": None, "documents": None, **self._special, **_TRIAL}, _TRIAL_SECONDS)
        except ChatTemplateLimitError as error:
            self.refusal = f"{error}; chat is refused"
            logger.warning("%s", self.refusal)
        except ChatTemplateError:
            # It may have its own idea of a conversation.
            pass

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[JsonValue] = (),
        variables: Mapping[str, JsonValue] = NO_VARIABLES,
    ) -> str:
        """The prompt's text. Takes a millisecond, at worst RENDER_SECONDS and WAIT_SECONDS: call it where
        waiting is allowed.

        `continue_final_message` ends the text where the last message's content ends; then there is no
        generation prompt. `tools` are what the model may call, in OpenAI's form. `variables` are the
        request's own, none of them RESERVED_VARIABLES. Raises ChatTemplateError, whose text may hold the
        template's own words; BusyError, NoProcessError.
        """
        if continue_final_message:
            last = messages[-1]
            ended: ChatMessage = {**last, "content": (last["content"] or "") + END_MARK}
            messages = [*messages[:-1], ended]
        given = {
            "tools": None,
            "documents": None,
            **self._special,
            **{name: value for name, value in variables.items() if name not in RESERVED_VARIABLES},
            **({"tools": list(tools)} if tools else {}),
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        text = self._render(given, RENDER_SECONDS)
        return _until_mark(text) if continue_final_message else text

    def close(self) -> None:
        """Ends the processes; another rendering starts them again. Idempotent."""
        for renderer in self._renderers:
            renderer.close()

    def _render(self, variables: Mapping[str, JsonValue], seconds: float) -> str:
        try:
            question = json.dumps(variables, ensure_ascii=False).encode(errors="surrogatepass")
        except (RecursionError, ValueError, TypeError):
            raise ChatTemplateError("its variables are no JSON") from None
        try:
            reply = self._ask(question, seconds)
        except OutOfTimeError:
            limit = f"takes more than {LIMITS.cpu_seconds:g} s"
        except CrashedError:
            limit = _LIMITS[Outcome.TOO_DEEP]
        else:
            outcome, text = Outcome(reply[0]), reply[1:].decode(errors="surrogatepass")
            if outcome is Outcome.DONE:
                return text
            if outcome is Outcome.NO_TEMPLATE:
                raise ConfigError(f"{self._title}: {text}")
            if outcome is Outcome.FAILED:
                raise ChatTemplateError(text)
            limit = _LIMITS[outcome]
        raise ChatTemplateLimitError(f"{self._title} {limit} to render a conversation")

    def _ask(self, question: bytes, seconds: float) -> bytes:
        try:
            renderer = self._free.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise BusyError("chat template: too many conversations are being rendered") from None
        try:
            reply = renderer.ask(question, seconds)
            if reply[0] == Outcome.OUT_OF_MEMORY:
                # Give back what it has taken.
                renderer.close()
            return reply
        finally:
            self._free.put(renderer)


def _until_mark(text: str) -> str:
    place = text.rfind(END_MARK)
    if place < 0:
        raise ChatTemplateError("the last message is not in the text")
    return text[:place]
