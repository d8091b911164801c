"""One request of a workload, and what all of them are checked for."""

from collections.abc import Sequence

from msgspec import Struct

from moe_model.errors import ConfigError


class Planned(Struct, frozen=True):
    """A prompt as token ids, and how many tokens shall follow it. `due_s`: when it is to be sent, in seconds
    since the load began; None: when there is a client for it."""

    prompt: tuple[int, ...]
    num_output: int
    due_s: float | None = None


class Sized(Struct, frozen=True):
    """A request as a trace has it: lengths in tokens, and no text.

    `blocks`: numbers of its blocks of `block_tokens` tokens each, the last one of which may be shorter;
    prompts that begin with the same numbers begin with the same tokens. Empty: it shares nothing. `prompt`:
    where the trace has the text itself, its tokens."""

    num_prompt: int
    num_output: int
    due_s: float | None = None
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    prompt: tuple[int, ...] = ()


class Workload(Struct, frozen=True):
    """Requests in the order in which they are sent. `notes`: what was changed of a trace, a sentence each."""

    requests: tuple[Planned, ...]
    notes: tuple[str, ...] = ()


def cut(sized: Sequence[Sized], max_seq_len: int) -> tuple[list[Sized], int]:
    """Each with at least one token of prompt and output, and no more of both than the model's context holds:
    of the prompt first. Second: how many were cut."""
    found, num_cut = [], 0
    for each in sized:
        output = max(1, min(each.num_output, max_seq_len - 1))
        prompt = max(1, min(each.num_prompt, max_seq_len - output))
        num_cut += prompt < each.num_prompt or output < each.num_output
        found.append(Sized(prompt, output, each.due_s, each.blocks, each.block_tokens, each.prompt[:prompt]))
    return found, num_cut


def fits(num_prompt: int, num_output: int, max_seq_len: int) -> None:
    """Raises ConfigError where the model's context does not hold such a request."""
    if num_prompt + num_output > max_seq_len:
        raise ConfigError(
            f"load: {num_prompt} + {num_output} tokens, and the model's context holds {max_seq_len}: "
            "take fewer of prompt_tokens or output_tokens"
        )
