"""Prompts: text, token ids or chat, to token ids of the model's vocabulary."""

import json
from collections.abc import Callable, Sequence

from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ServedModel
from coordinator.api.text.chat_template import (
    RESERVED_VARIABLES,
    ChatMessage,
    ChatTemplateError,
    ChatTemplateLimitError,
)
from coordinator.api.validation.tools import check_tools, described, earlier_calls, offered
from coordinator.api.validation.violations import Violations
from coordinator.tools.told import with_tools_told
from expertmesh.v1 import generation_pb2 as pb
from moe_model.errors import TokenizerError, TokenizerLimitError

MAX_TEXT_BYTES = 4 << 20
# A sliding prompt may exceed the context; this bounds what it may cost to hold and to check.
MAX_PROMPT_TOKENS = 1 << 20
MAX_MESSAGES = 1024
MAX_TEMPLATE_KWARGS_BYTES = 64 << 10
ROLES = ("system", "user", "assistant", "tool")


def prompt_field(message: pb.GenerateRequest) -> str:
    return f"prompt.{message.WhichOneof('prompt')}"


def check_prompt(message: pb.GenerateRequest, served: ServedModel, violations: Violations) -> None:
    match message.WhichOneof("prompt"):
        case None:
            violations.add("prompt", "exactly one of text, token_ids and chat is required")
        case "text":
            check_text("prompt.text", message.text, violations)
        case "token_ids":
            check_token_list("prompt.token_ids", message.token_ids.ids, served, violations)
        case "chat":
            check_chat("prompt.chat", message.chat, violations)
            if message.add_special_tokens:
                violations.add("add_special_tokens", "is for text prompts; a chat template brings its own")
    if message.HasField("truncate_prompt_tokens"):
        value, most = message.truncate_prompt_tokens, served.max_context - 1
        violations.check(1 <= value <= most, "truncate_prompt_tokens", value, f"[1, {most}]")


def check_text(field: str, text: str, violations: Violations, least: int = 1) -> None:
    num_bytes = len(text.encode())
    if not least <= num_bytes <= MAX_TEXT_BYTES:
        violations.add(field, f"{num_bytes} bytes are not in [{least}, {MAX_TEXT_BYTES}]")


def check_token_list(
    field: str, token_ids: Sequence[int], served: ServedModel, violations: Violations, least: int = 1
) -> None:
    if not least <= len(token_ids) <= MAX_PROMPT_TOKENS:
        violations.add(field, f"{len(token_ids)} ids are not in [{least}, {MAX_PROMPT_TOKENS}]")
    else:
        violations.check_token_ids(field, token_ids, served.config.vocab_size)


def check_chat(field: str, chat: pb.ChatPrompt, violations: Violations) -> None:
    _check_template(field, chat, violations)
    check_tools(field, chat, violations)
    field = f"{field}.messages"
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        violations.add(field, f"{len(chat.messages)} messages are not in [1, {MAX_MESSAGES}]")
        return
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            violations.add(f"{field}[{index}].role", "is not system, user, assistant or tool")
    num_bytes = sum(len(message.content.encode()) for message in chat.messages)
    num_bytes += sum(call.ByteSize() for message in chat.messages for call in message.tool_calls)
    num_bytes += sum(len(message.reasoning.encode()) for message in chat.messages)
    if num_bytes > MAX_TEXT_BYTES:
        violations.add(field, f"{num_bytes} bytes are more than {MAX_TEXT_BYTES}")


def _check_template(field: str, chat: pb.ChatPrompt, violations: Violations) -> None:
    if chat.continue_final_message and chat.add_generation_prompt:
        violations.add(f"{field}.continue_final_message", "excludes add_generation_prompt")
    field = f"{field}.template_kwargs"
    if len(chat.template_kwargs.encode()) > MAX_TEMPLATE_KWARGS_BYTES:
        violations.add(field, f"has more than {MAX_TEMPLATE_KWARGS_BYTES} bytes")
        return
    try:
        variables = _variables(chat)
    except (ValueError, RecursionError):
        variables = None
    if not isinstance(variables, dict):
        violations.add(field, "is not a JSON object")
        return
    for name in RESERVED_VARIABLES:
        if name in variables:
            violations.add(field, f"cannot set {name}, which the server does")


def _variables(chat: pb.ChatPrompt) -> dict[str, object]:
    """Of a checked prompt."""
    found: dict[str, object] = json.loads(chat.template_kwargs) if chat.template_kwargs else {}
    return found


def prompt_ids(
    message: pb.GenerateRequest, served: ServedModel, check_least: Callable[[int], None], rendered: str
) -> tuple[int, ...]:
    """The ids of a checked prompt, after truncation; `rendered` is a conversation's text. Raises ApiError.

    `check_least` is told how many tokens a text has at least before it costs anything to know them.
    """
    field = prompt_field(message)
    truncates = message.HasField("truncate_prompt_tokens")
    check = None if truncates else check_least
    match message.WhichOneof("prompt"):
        case "token_ids":
            token_ids: Sequence[int] = message.token_ids.ids
        case "chat":
            token_ids = encode(field, rendered, served, check, add_bos=False)
        case _:
            add_bos = message.add_special_tokens if message.HasField("add_special_tokens") else True
            token_ids = encode(field, message.text, served, check, add_bos=add_bos)
    if not token_ids:
        raise ApiError.of(Reason.INVALID_FIELD, "has no tokens", field=field)
    if truncates:
        token_ids = token_ids[-message.truncate_prompt_tokens :]
    return tuple(token_ids)


def encode(
    field: str,
    text: str,
    served: ServedModel,
    check_least: Callable[[int], None] | None = None,
    *,
    add_bos: bool = True,
) -> list[int]:
    """Token ids of a text, all of them in the model's vocabulary, at most MAX_PROMPT_TOKENS. Raises ApiError.

    `check_least` is told first how many tokens it has at least.
    """
    tokenizer = served.require_tokenizer(field)
    if check_least is not None:
        # A character has a byte or more.
        check_least(tokenizer.least_tokens(len(text)))
    try:
        token_ids = tokenizer.encode(text, add_bos=add_bos)
    except TokenizerLimitError as error:
        raise ApiError.of(Reason.INVALID_FIELD, str(error), field=field) from None
    except TokenizerError:
        raise ApiError.of(Reason.INVALID_FIELD, "the tokenizer cannot take this text", field=field) from None
    # Before anything is done with each of them.
    if len(token_ids) > MAX_PROMPT_TOKENS:
        what = f"{len(token_ids)} tokens are more than {MAX_PROMPT_TOKENS}"
        raise ApiError.of(Reason.INVALID_FIELD, what, field=field)
    if token_ids and max(token_ids) >= served.config.vocab_size:
        raise ApiError.of(
            Reason.TOKEN_ID_OUT_OF_RANGE,
            f"its token {max(token_ids)} is not in [0, {served.config.vocab_size})",
            field=field,
            metadata={"vocab_size": str(served.config.vocab_size)},
        )
    return token_ids


def render_chat(field: str, chat: pb.ChatPrompt, served: ServedModel) -> str:
    """The text of a conversation; its template brings its own special tokens. Raises ApiError."""
    template = served.chat_template
    if template is None:
        raise ApiError.of(
            Reason.NO_CHAT_TEMPLATE, "this model has no chat template; use a text prompt", field=field
        )
    if template.refusal:
        raise ApiError.of(Reason.NO_CHAT_TEMPLATE, template.refusal, field=field)
    messages = [_turn(each, as_text=template.call_form.text_arguments) for each in chat.messages]
    tools = [described(tool) for tool in offered(chat)]
    if tools and not template.shows_tools:
        messages = with_tools_told(messages, tools)
    continues = chat.continue_final_message
    begins = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues
    try:
        return template.render(
            messages,
            add_generation_prompt=begins,
            continue_final_message=continues,
            tools=tools,
            variables=_variables(chat),
        )
    except ChatTemplateLimitError as error:
        raise ApiError.of(Reason.INVALID_FIELD, str(error), field=field) from None
    except ChatTemplateError:
        message = "the chat template cannot render these messages"
        raise ApiError.of(Reason.INVALID_FIELD, message, field=field) from None


def _turn(message: pb.ChatPrompt.Message, *, as_text: bool) -> ChatMessage:
    turn = ChatMessage(role=message.role, content=message.content)
    if message.tool_calls:
        turn["content"] = message.content or None
        turn["tool_calls"] = earlier_calls(message.tool_calls, as_text=as_text)
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name:
        turn["name"] = message.name
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    return turn
