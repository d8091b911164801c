"""When requests of an open loop are due."""

import random


def poisson(rate: float, num: int, seed: int) -> list[float]:
    """(num,) seconds since the load began, the first 0. Gaps are exponential, their mean 1 / rate."""
    rng, at, found = random.Random(f"arrivals {seed}"), 0.0, []
    for _ in range(num):
        found.append(at)
        at += rng.expovariate(rate)
    return found


def scaled(due: list[float], rate: float | None) -> list[float]:
    """A trace's times from 0 on; with `rate`, stretched so that so many come in a second on the average."""
    if not due:
        return []
    first, span = due[0], due[-1] - due[0]
    factor = 1.0 if rate is None or span <= 0 else (len(due) - 1) / rate / span
    return [factor * (at - first) for at in due]
