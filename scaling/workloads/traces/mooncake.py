"""Mooncake's traces (https://github.com/kvcache-ai/Mooncake, FAST '25 release, arXiv:2407.00079): JSON lines.

`timestamp` in milliseconds, `input_length` and `output_length` in tokens, `hash_ids`: a number for each block
of 512 tokens of the prompt. Blocks with the same number are the same tokens, and numbers stand for all that
comes before them as well: prompts that begin with the same numbers share a prefix.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from scaling.workloads.request import Sized
from scaling.workloads.traces.lines import lines_of, number, opened, shown, tokens, wrong

BLOCK_TOKENS = 512


def read(path: Path) -> Iterator[Sized]:
    """In the file's order. Raises ConfigError."""
    with opened(path) as file:
        for line, text in lines_of(path, file):
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise wrong(path, line, "not JSON") from error
            if not isinstance(found, dict):
                raise wrong(path, line, "no JSON object")
            names = ("timestamp", "input_length", "output_length")
            missing = [name for name in names if name not in found]
            if missing:
                raise wrong(path, line, f"no {missing[0]!r}")
            at, prompt, output = (found[name] for name in names)
            yield Sized(
                tokens(path, line, names[1], prompt),
                tokens(path, line, names[2], output),
                number(path, line, names[0], at) / 1e3,
                _blocks(path, line, found.get("hash_ids", [])),
                BLOCK_TOKENS,
            )


def _blocks(path: Path, line: int, found: object) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 63 for each in found
    ):
        raise wrong(path, line, f"hash_ids: {shown(found)} is no list of numbers")
    return tuple(found)
