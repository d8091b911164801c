"""Random choices of a sweep: the same ones each time that it runs, whatever was run before."""

import hashlib
import random
from collections.abc import Iterable


def seed_of(seed: int, key: str, number: int) -> int:
    """Of one cell in one round, in [0, 2^31)."""
    digest = hashlib.sha256(f"{seed}/{key}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def order(keys: Iterable[str], seed: int, number: int, of: str = "") -> list[str]:
    """The keys in the order of one round, which does not depend on the order in which they are given. `of`:
    what they are keys of, so that several have orders of their own."""
    found = sorted(keys)
    random.Random(f"{seed}/{number}/{of}").shuffle(found)
    return found
