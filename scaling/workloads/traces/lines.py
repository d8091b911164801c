"""Lines of traces, which come from outside: whatever is wrong is one ConfigError with the line's number."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from moe_model.errors import ConfigError

# Of one request: no model has a context of as many tokens.
MOST_TOKENS = 10_000_000
# Characters of a line; a conversation is long, a file without ends of lines longer.
MOST_LINE = 4 << 20


def wrong(path: Path, line: int, what: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: {what}")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Raises ConfigError, also for what turns out not to be text as it is read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8") from error


def lines_of(path: Path, file: TextIO) -> Iterator[tuple[int, str]]:
    """Those that are not empty, by their numbers from 1. Raises ConfigError for one that is too long."""
    number = 0
    while line := file.readline(MOST_LINE + 1):
        number += 1
        if len(line) > MOST_LINE:
            raise wrong(path, number, f"more than {MOST_LINE} characters")
        if line.strip():
            yield number, line.strip()


def rows_of(path: Path, file: TextIO, columns: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Of a CSV file whose first line names its columns, these among others. Raises ConfigError."""
    lines = lines_of(path, file)
    first = next(lines, None)
    if first is None:
        raise ConfigError(f"{path}: empty")
    names = [name.strip() for name in _values(path, *first)]
    missing = [column for column in columns if column not in names]
    if missing:
        raise wrong(path, first[0], f"no column {missing[0]!r}; there are {', '.join(names)[:200]}")
    for number, line in lines:
        values = _values(path, number, line)
        if len(values) != len(names):
            raise wrong(path, number, f"{len(values)} values for {len(names)} columns")
        yield number, dict(zip(names, values, strict=True))


def _values(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise wrong(path, number, f"not CSV: {error}") from error


def tokens(path: Path, line: int, name: str, value: object) -> int:
    """A number of tokens, as text or number. Raises ConfigError."""
    found = number(path, line, name, value)
    if found != int(found) or not 0 <= found <= MOST_TOKENS:
        raise wrong(path, line, f"{name}: {shown(value)} is no number of tokens from 0 to {MOST_TOKENS}")
    return int(found)


def number(path: Path, line: int, name: str, value: object) -> float:
    """Finite. Raises ConfigError."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        found = float(value)
    except (ValueError, OverflowError) as error:
        raise wrong(path, line, f"{name}: {shown(value)} is no number") from error
    if not abs(found) < float("inf"):
        raise wrong(path, line, f"{name}: {shown(value)} is no finite number")
    return found


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
