"""Conversations as files in the manner of ShareGPT have them: a JSON list of objects, or one in each line.

`conversations` is a list of turns, `{"from": "human", "value": TEXT}` and `{"from": "gpt", "value": TEXT}`;
the first turn is the prompt, the second the output, as in the benchmarks of vLLM
(https://docs.vllm.ai/en/latest/benchmarking/cli/). `messages` with `role` and `content` are taken as well.
Conversations of one turn are left out. There are no times.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_model.errors import ConfigError
from scaling.workloads.request import Sized
from scaling.workloads.traces.lines import lines_of, opened, shown, wrong

# A list is read whole.
MOST_BYTES = 1 << 30
Encode = Callable[[str], Sequence[int]]


def read(path: Path, encode: Encode) -> Iterator[Sized]:
    """With their prompts' tokens; where `encode` gives lengths only, of as many. Raises ConfigError."""
    for where, found in _conversations(path):
        turns = _turns(path, where, found)
        if len(turns) < 2:
            continue
        prompt, output = (encode(turn) for turn in turns[:2])
        yield Sized(len(prompt), len(output), prompt=tuple(prompt))


def _conversations(path: Path) -> Iterator[tuple[int, Any]]:
    """Each with its line, or its number in the list, from 1."""
    with opened(path) as file:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: more than {MOST_BYTES >> 20} MiB")
        head = file.read(64).lstrip()
        file.seek(0)
        if not head.startswith("["):
            for line, text in lines_of(path, file):
                yield line, _json(path, line, text)
            return
        found = _json(path, 1, file.read())
        yield from enumerate(found, 1)


def _json(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text.lstrip("\ufeff"))
    except json.JSONDecodeError as error:
        raise wrong(path, line + error.lineno - 1, f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise wrong(path, line, "not JSON") from error


def _turns(path: Path, where: int, found: Any) -> list[str]:
    turns = None
    if isinstance(found, dict):
        turns = found.get("conversations", found.get("conversation", found.get("messages")))
    if not isinstance(turns, list):
        raise ConfigError(f"{path}, conversation {where}: no list 'conversations'")
    texts = []
    for turn in turns[:2]:
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(text, str):
            raise ConfigError(f"{path}, conversation {where}: {shown(turn)} is no turn with a text")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(f"{path}, conversation {where}: a text has half of a surrogate pair")
        texts.append(text)
    return texts
