"""Streams as they are when all is well, to be broken one by one."""

from chaos.history import Stream

GOLDEN = (11, 12, 13, 14)


def stream(
    *,
    request: int = 0,
    due: float = 0.0,
    tokens: tuple[int, ...] = GOLDEN,
    step: float = 0.1,
    code: str = "OK",
    num_tokens: int | None = None,
) -> Stream:
    """A token every `step` seconds from `due` on, then the end."""
    made = Stream(request, due, admitted=due)
    for index, token_id in enumerate(tokens):
        made.token(index, token_id, due + (index + 1) * step)
    if code == "OK":
        made.finish()
        num_tokens = len(tokens) if num_tokens is None else num_tokens
    made.end(due + (len(tokens) + 1) * step, code, num_tokens=num_tokens)
    return made
