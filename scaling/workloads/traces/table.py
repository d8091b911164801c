"""The formats of traces by name, and a trace as requests of a model."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tokenizers

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import Target, num_requests
from scaling.workloads.lengths import lengths
from scaling.workloads.request import Sized, cut
from scaling.workloads.traces import azure, burstgpt, mooncake, sharegpt, text

# Of a trace whose load does not say how many.
MOST_REQUESTS = 10_000
# Where a model has no tokenizer, a text's length is taken from its bytes in UTF-8.
BYTES_PER_TOKEN = 4

TIMED: dict[str, Callable[[Path], Iterator[Sized]]] = {
    "azure": azure.read,
    "burstgpt": burstgpt.read,
    "mooncake": mooncake.read,
}
FORMATS = (*TIMED, "sharegpt", "text")


def sized_of(load: Load, target: Target, seed: int) -> tuple[list[Sized], tuple[str, ...]]:
    """A trace's requests in the order of their times, and what was changed of them. Raises ConfigError."""
    assert load.trace is not None
    path, kind = Path(load.trace), load.trace_format
    if kind not in FORMATS:
        raise ConfigError(f"load: trace_format: {kind!r} is none of {', '.join(FORMATS)}")
    notes: list[str] = []
    if kind == "text":
        found = _pieces(path, load, target, seed)
    elif kind == "sharegpt":
        found, notes = _conversations(path, load, target)
    else:
        found = _first(TIMED[kind](path), load, path, notes)
        found.sort(key=lambda each: each.due_s or 0.0)
    if not found:
        raise ConfigError(f"{path}: no request")
    found, num_cut = cut(found, target.max_seq_len)
    if num_cut:
        notes.append(
            f"{num_cut} of {len(found)} requests were cut to a context of {target.max_seq_len} tokens"
        )
    return found, tuple(notes)


def _first(found: Iterator[Sized], load: Load, path: Path, notes: list[str]) -> list[Sized]:
    wanted = list(itertools.islice(found, load.num_requests or MOST_REQUESTS))
    if load.num_requests is None and len(wanted) == MOST_REQUESTS and next(found, None) is not None:
        notes.append(f"of {path} the first {MOST_REQUESTS} requests")
    return wanted


def _conversations(path: Path, load: Load, target: Target) -> tuple[list[Sized], list[str]]:
    notes: list[str] = []
    encode = _encoder(target)
    if encode is None:
        notes.append(f"no tokenizer: {BYTES_PER_TOKEN} bytes of text count as a token, prompts are random")
        found = sharegpt.read(path, lambda turn: range(-(-len(turn.encode()) // BYTES_PER_TOKEN)))
        return [Sized(each.num_prompt, each.num_output) for each in _first(found, load, path, notes)], notes
    return _first(sharegpt.read(path, encode), load, path, notes), notes


def _pieces(path: Path, load: Load, target: Target, seed: int) -> list[Sized]:
    encode = _encoder(target)
    if encode is None:
        raise ConfigError(f"load: {path}: the model has no tokenizer, so a text cannot be its prompts")
    tokens, num = text.tokens_of(path, encode), num_requests(load)
    prompts = lengths(load.lengths, load.prompt_tokens, load.length_spread, num, seed, "prompt")
    outputs = lengths(load.lengths, load.output_tokens, load.length_spread, num, seed, "output")
    return [
        Sized(prompt, output, prompt=text.piece(tokens, prompt, seed, index))
        for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
    ]


def _encoder(target: Target) -> Callable[[str], Sequence[int]] | None:
    """The model's own, without the tokens that it puts around a text. Raises ConfigError."""
    if target.tokenizer is None:
        return None
    try:
        found = tokenizers.Tokenizer.from_file(str(target.tokenizer))
    # The library raises plain Exceptions.
    except Exception as error:
        raise ConfigError(f"{target.tokenizer}: {' '.join(str(error).split())[:200]}") from error
    return lambda said: list(found.encode(said, add_special_tokens=False).ids)
