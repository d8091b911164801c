"""Lengths in tokens: all equal, uniform, or lognormal, around a mean, by a seed."""

import math
import random
from typing import Literal

Lengths = Literal["exact", "uniform", "lognormal"]
# A length is at most so many times its mean, which a lognormal distribution knows no limit of.
MOST = 16


def lengths(kind: Lengths, mean: int, spread: float, num: int, seed: int, what: str) -> list[int]:
    """`num` lengths of at least one token.

    `uniform`: from mean x (1 - spread) to mean x (1 + spread), both included. `lognormal`: the mean is
    `mean`, `spread` the standard deviation of the logarithm. `what` keeps prompts' and outputs' apart."""
    rng = random.Random(f"lengths {what} {seed}")
    match kind:
        case "uniform":
            low, high = math.ceil(mean * (1 - spread)), math.floor(mean * (1 + spread))
            return [max(1, rng.randint(min(low, high), high)) for _ in range(num)]
        case "lognormal":
            mu = math.log(mean) - spread**2 / 2
            drawn = (round(rng.lognormvariate(mu, spread)) for _ in range(num))
            return [min(max(1, length), MOST * mean) for length in drawn]
        case "exact":
            return [mean] * num
