"""How long calls take: what is usual, so that what is not shows. Pure but for its counters.

Times are kept by the size of a call, in powers of two of its rows, as rows cost time.
"""

from collections.abc import Iterable

# After so many seconds without a call half of a worker's slowness is forgiven, so that it is tried again.
FORGIVENESS = 5.0
_MIN_SAMPLES = 20
# What is usual is looked up anew after so many calls: that is slow, and it changes slowly.
_KEPT = 16
_STEP = 0.05
_WEIGHT = 0.2


class Quantile:
    """Follows a quantile of a stream of positive numbers, whatever their scale; one float.

    Each number above it raises it by `p` parts, each below lowers it by 1 - p (stochastic approximation,
    Robbins and Monro, 1951, on the logarithm).
    """

    __slots__ = ("_p", "num", "value")

    def __init__(self, p: float) -> None:
        self._p = p
        self.num = 0
        self.value = 0.0

    def add(self, x: float) -> None:
        self.num += 1
        if self.num == 1:
            self.value = x
            return
        # Large steps first, so that one odd beginning does not stay.
        step = max(_STEP, 2.0 / self.num)
        self.value *= 1.0 + step * self._p if x > self.value else 1.0 - step * (1.0 - self._p)


class Latency:
    """Of one pool. Belongs to its thread."""

    def __init__(self) -> None:
        self._usual: dict[int, Quantile] = {}
        self._found: dict[tuple[int, int], float | None] = {}
        self._num_added = 0
        self._workers: dict[int, _Worker] = {}

    def add(self, rank: int, num_pairs: int, seconds: float, now: float) -> None:
        """A call of a worker came back after so long."""
        bucket = num_pairs.bit_length()
        usual = self._usual.get(bucket)
        if usual is None:
            usual = self._usual[bucket] = Quantile(0.5)
        usual.add(seconds)
        self._num_added += 1
        if usual.num <= _MIN_SAMPLES or self._num_added % _KEPT == 0:
            self._found.clear()
        expected = self._expected(bucket, 1)
        assert expected is not None, "it has just been added"
        worker = self._workers.get(rank)
        if worker is None:
            worker = self._workers[rank] = _Worker()
        worker.add(seconds / expected, now)

    def usual(self, num_pairs: int) -> float | None:
        """The median of calls of this size, or what it can be at most; None: not known yet."""
        return self._expected(num_pairs.bit_length(), _MIN_SAMPLES)

    def costs(self, ranks: Iterable[int], now: float) -> dict[int, float]:
        """How many times longer than usual each worker takes for a row, at least 1 for the quickest."""
        costs = {rank: self._cost(rank, now) for rank in ranks}
        least = min(costs.values(), default=1.0)
        # Noise must not move rows about: within a half, workers are equal.
        return {rank: 1.0 if cost < 1.5 * least else cost / least for rank, cost in costs.items()}

    def _expected(self, bucket: int, least: int) -> float | None:
        key = (bucket, least)
        if key not in self._found:
            self._found[key] = self._look_up(bucket, least)
        return self._found[key]

    def _look_up(self, bucket: int, least: int) -> float | None:
        """No more than larger calls take: a slow worker that gets only small ones is not their measure. Of
        calls larger than all known ones: as if each row took its share of the time."""
        known = {size: quantile.value for size, quantile in self._usual.items() if quantile.num >= least}
        larger = [value for size, value in known.items() if size >= bucket]
        if larger or not known:
            return min(larger, default=None)
        return min([value * 2.0 ** (bucket - size) for size, value in known.items()])

    def forget(self, rank: int) -> None:
        self._workers.pop(rank, None)

    def _cost(self, rank: int, now: float) -> float:
        worker = self._workers.get(rank)
        return 1.0 if worker is None else worker.cost(now)


class _Worker:
    __slots__ = ("_at", "_ratio")

    def __init__(self) -> None:
        self._ratio = 1.0
        self._at = 0.0

    def add(self, ratio: float, now: float) -> None:
        self._ratio += _WEIGHT * (ratio - self._ratio)
        self._at = now

    def cost(self, now: float) -> float:
        if self._ratio <= 1.0:
            return max(0.05, self._ratio)
        forgiven: float = 0.5 ** ((now - self._at) / FORGIVENESS)
        return 1.0 + (self._ratio - 1.0) * forgiven
