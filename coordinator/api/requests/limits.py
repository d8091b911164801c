"""How many tokens a request may have: the context, the KV cache, the server's own limit on outputs."""

from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.served_model import ServedModel
from coordinator.engine.messages.request import ContextOverflow


def check_context(
    served: ServedModel,
    num_prompt: int,
    max_tokens: int | None,
    prompt_field: str,
    *,
    is_least: bool = False,
) -> None:
    """Raises CONTEXT_LENGTH_EXCEEDED unless the prompt and at least one token, or what was asked for, fit.

    `is_least`: the prompt may have more tokens than that, so only it is looked at.
    """
    context = served.max_context
    most = context if max_tokens == 0 else context - 1
    if num_prompt > most:
        field = prompt_field
        message = f"{'at least ' if is_least else ''}{num_prompt} tokens are more than {most}"
    elif not is_least and max_tokens is not None and num_prompt + max_tokens > context:
        field = "stopping.max_tokens"
        message = f"{max_tokens} after a prompt of {num_prompt} tokens is more than the context of {context}"
    else:
        return
    metadata = {
        "prompt_tokens": str(num_prompt),
        "max_tokens": str(1 if max_tokens is None else max_tokens),
        "max_context_length": str(context),
    }
    raise ApiError.of(Reason.CONTEXT_LENGTH_EXCEEDED, message, field=field, metadata=metadata)


def output_limit(
    served: ServedModel, num_prompt: int, max_tokens: int | None, overflow: ContextOverflow, prompt_field: str
) -> int:
    """The request's max_tokens; where none was asked for, all that fits.

    Raises KV_CAPACITY_TOO_SMALL when the window of the last token can never be cached.
    """
    context, capacity = served.max_context, served.kv_capacity_tokens
    if max_tokens is None:
        max_tokens = served.max_output_tokens
        if overflow is ContextOverflow.STOP:
            max_tokens = min(max_tokens, context - num_prompt)
        if capacity < context:
            max_tokens = max(1, min(max_tokens, capacity - num_prompt))
    needed = min(num_prompt + max_tokens, context)
    if needed > capacity:
        raise ApiError.of(
            Reason.KV_CAPACITY_TOO_SMALL,
            f"needs {needed} tokens of KV cache, the server has {capacity}",
            field=prompt_field,
            metadata={"capacity": str(capacity), "needed": str(needed)},
        )
    return max_tokens
