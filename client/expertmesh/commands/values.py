"""Numbers as the arguments of commands: each of these takes one text and raises ArgumentTypeError."""

import argparse
from collections.abc import Callable

from expertmesh.shown_text import MAX_QUOTED

# More would not be slow but end the process, or the machine.
MAX_THREADS = 1024
MAX_WORKERS = 1024
MAX_FRONTS = 64
_MAX_INT = (1 << 31) - 1


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Of a range, both ends included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text[:MAX_QUOTED]!r} is not a whole number in [{least}, {most}]"
            )
        return value

    return parse


positive = whole_number(1, _MAX_INT)
index = whole_number(0, _MAX_INT)
number_of_threads = whole_number(1, MAX_THREADS)
number_of_workers = whole_number(0, MAX_WORKERS)
number_of_fronts = whole_number(1, MAX_FRONTS)


def mebibytes(text: str) -> int:
    """A number of MiB, in bytes."""
    return positive(text) << 20


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text[:MAX_QUOTED]!r} is not a number between 0 and 1000000")
    return value


def rate(text: str) -> float:
    """`0` as well, which is no limit."""
    return 0.0 if text.strip() == "0" else positive_number(text)


def positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(
            f"{text[:MAX_QUOTED]!r} is not a number of seconds between 0 and 1000000"
        )
    return value


def seconds(text: str) -> float:
    """`0` as well, which switches off what it times."""
    return 0.0 if text.strip() == "0" else positive_seconds(text)
