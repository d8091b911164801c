"""Prompts of exact lengths, by a seed: equal for equal seeds, and else with no common prefix by accident."""

import random
from collections.abc import Sequence

from scaling.workloads.request import Planned, Sized

# Below are the tokens that most vocabularies keep for padding, beginnings and ends.
FIRST_ID = 4


def prompt(seed: int, index: int, length: int, vocab_size: int) -> tuple[int, ...]:
    """(length,) token ids in [FIRST_ID, vocab_size), or in all of it where the vocabulary is smaller."""
    rng = random.Random(f"prompt {seed} {index}")
    first = FIRST_ID if vocab_size > FIRST_ID else 0
    return tuple(rng.choices(range(first, vocab_size), k=length))


def with_prompts(sized: Sequence[Sized], seed: int, vocab_size: int) -> list[Planned]:
    """The requests with tokens: the trace's own, those of its blocks, else ones that the seed makes."""
    return [
        Planned(_tokens(each, seed, index, vocab_size), each.num_output, each.due_s)
        for index, each in enumerate(sized)
    ]


def _tokens(each: Sized, seed: int, index: int, vocab_size: int) -> tuple[int, ...]:
    tokens = list(each.prompt[: each.num_prompt])
    for block in each.blocks:
        if len(tokens) >= each.num_prompt:
            break
        size = min(each.block_tokens, each.num_prompt - len(tokens))
        tokens += prompt(seed, -1 - block, each.block_tokens, vocab_size)[:size]
    tokens += prompt(seed, index, each.num_prompt - len(tokens), vocab_size)
    return tuple(tokens)
