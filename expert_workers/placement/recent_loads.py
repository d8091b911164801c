"""RecentLoads: when to look at what experts were asked for, and what that has been since the last time."""

from collections.abc import Iterable, Mapping

from moe_model.layers.dispatch import ExpertKey

# Rows per module below which a load says nothing.
_LEAST_LOAD = 100


class RecentLoads:
    """Belongs to the supervisor's thread."""

    def __init__(self, interval: float, now: float) -> None:
        """Seconds; 0: never."""
        self._interval = interval
        self._due_at = now + interval if interval else float("inf")
        self._before: Mapping[ExpertKey, int] = {}

    def is_due(self, now: float) -> bool:
        return now >= self._due_at

    def take(
        self, totals: Mapping[ExpertKey, int], keys: Iterable[ExpertKey], now: float
    ) -> dict[ExpertKey, float] | None:
        """Rows of these modules since the last time; None: too few to say anything. `totals` are all ever."""
        self._due_at = now + self._interval
        before, self._before = self._before, totals
        loads = {key: float(totals.get(key, 0) - before.get(key, 0)) for key in keys}
        return loads if sum(loads.values()) >= _LEAST_LOAD * len(loads) else None
