"""BurstGPT (https://github.com/HPMLL/BurstGPT, arXiv:2401.17644): CSV with a row for each request.

`Timestamp` is in seconds since the trace began, `Request tokens` and `Response tokens` are lengths; other
columns (`Model`, `Total tokens`, `Log Type` and, later, more) do not count. A request
that failed has 0 response tokens; it is left out.
"""

from collections.abc import Iterator
from pathlib import Path

from scaling.workloads.request import Sized
from scaling.workloads.traces.lines import number, opened, rows_of, tokens

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read(path: Path) -> Iterator[Sized]:
    """In the file's order. Raises ConfigError."""
    with opened(path) as file:
        for line, row in rows_of(path, file, COLUMNS):
            at, prompt, output = (row[column] for column in COLUMNS)
            sized = Sized(
                tokens(path, line, COLUMNS[1], prompt),
                tokens(path, line, COLUMNS[2], output),
                number(path, line, COLUMNS[0], at),
            )
            if sized.num_output:
                yield sized
