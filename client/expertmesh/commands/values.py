"""What a number on the command line may be: types for argparse, whose errors name the range."""

import argparse

# More would not be slow but end the server's machine.
MAX_WORKERS = 1024
_MAX_INT = (1 << 31) - 1


def whole_number(text: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a whole number in [{least}, {most}]")
    return value


def positive(text: str) -> int:
    return whole_number(text, 1, _MAX_INT)


def index(text: str) -> int:
    """From 0."""
    return whole_number(text, 0, _MAX_INT)


def positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a number of seconds between 0 and 1000000")
    return value
