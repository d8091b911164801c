"""What is read of an observation: each measure's name, unit, which way is better, and how it is found."""

from collections.abc import Callable
from math import isfinite

from msgspec import Struct

from scaling.observation import QUANTILES, Observation, Spread


class Measure(Struct, frozen=True):
    """`name` ends in the unit, as columns do; `title` and `unit` are for people. `more_is_better`: None where
    neither is. `of`: None where the observation does not have it."""

    name: str
    title: str
    unit: str
    more_is_better: bool | None
    of: Callable[[Observation], float | None]

    def value(self, observation: Observation) -> float | None:
        """A finite number, or None."""
        found = self.of(observation)
        return found if found is not None and isfinite(found) else None


def quantile(spread: Spread | None, percent: int) -> float | None:
    if spread is None or len(spread.quantiles) != len(QUANTILES):
        return None
    return spread.quantiles[QUANTILES.index(percent)]


def _per_token(of: Callable[[Observation], float | None]) -> Callable[[Observation], float | None]:
    def found(observation: Observation) -> float | None:
        value = of(observation)
        return None if value is None or not observation.num_tokens else value / observation.num_tokens

    return found


MEASURES = (
    Measure("tokens_per_s", "throughput", "tokens/s", True, lambda o: o.tokens_per_s),
    Measure("requests_per_s", "requests", "1/s", True, lambda o: o.requests_per_s),
    Measure("first_token_ms", "first token", "ms", False, lambda o: quantile(o.first_token_ms, 50)),
    Measure("first_token_p99_ms", "first token, p99", "ms", False, lambda o: quantile(o.first_token_ms, 99)),
    Measure("per_token_ms", "per token", "ms", False, lambda o: quantile(o.per_token_ms, 50)),
    Measure("gap_ms", "gap", "ms", False, lambda o: quantile(o.gap_ms, 50)),
    Measure("gap_p99_ms", "gap, p99", "ms", False, lambda o: quantile(o.gap_ms, 99)),
    Measure("max_gap_ms", "longest gap", "ms", False, lambda o: o.max_gap_ms),
    Measure("balancedness", "balancedness", "", True, lambda o: o.balancedness),
    Measure("straggler_ms", "straggler", "ms", False, lambda o: o.straggler_ms),
    Measure(
        *("bytes_per_token", "network", "bytes/token", None),
        of=_per_token(lambda o: o.bytes_sent + o.bytes_received),
    ),
    Measure(
        *("cpu_ms_per_token", "processor", "ms/token", False),
        of=_per_token(lambda o: 1e3 * sum(o.cpu_s.values()) if o.cpu_s else None),
    ),
    Measure("memory_mb", "memory", "MB", False, lambda o: sum(o.memory_mb.values()) if o.memory_mb else None),
    Measure("joules_per_token", "energy", "J/token", False, of=_per_token(lambda o: o.joules)),
    Measure("start_s", "start", "s", False, lambda o: o.start_s),
)
BY_NAME = {measure.name: measure for measure in MEASURES}
# What another run must reproduce, and what is compared: of a whole cell, and steady enough for it.
PRIMARY = ("tokens_per_s", "first_token_ms", "per_token_ms", "gap_ms")
