"""Azure's traces of LLM inference: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.

Of November 2023 (https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2023.md),
whose times have no zone and seven digits of a second, as `2023-11-16 18:17:03.9799600`; and of May 2024,
described beside it, whose times end with a zone, as `2024-05-10 00:00:00.009930+00:00`.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from scaling.workloads.request import Sized
from scaling.workloads.traces.lines import opened, rows_of, shown, tokens, wrong

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:?\d\d)?", re.ASCII)


def read(path: Path) -> Iterator[Sized]:
    """In the file's order; `due_s` are seconds since 1970. Raises ConfigError."""
    with opened(path) as file:
        for line, row in rows_of(path, file, COLUMNS):
            yield Sized(
                tokens(path, line, COLUMNS[1], row[COLUMNS[1]]),
                tokens(path, line, COLUMNS[2], row[COLUMNS[2]]),
                _seconds(path, line, row[COLUMNS[0]]),
            )


def _seconds(path: Path, line: int, text: str) -> float:
    found = _TIME.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        whole, fraction, zone = found.groups()
        at = datetime.fromisoformat(whole + (zone or ""))
    except ValueError as error:
        raise wrong(path, line, f"TIMESTAMP: {shown(text)} is no time") from error
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return at.timestamp() + float(fraction or 0)
