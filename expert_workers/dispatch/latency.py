"""How long calls take: what is usual, so that what is not shows. Pure but for its counters.

Times are kept by the size of a call, in powers of two of its rows, as rows cost time; of a planned pool,
of its rows and of those that its columns cost beside.
"""

from collections.abc import Iterable, Mapping

# After so many seconds without a call half of a worker's slowness is forgiven, so that it is tried again.
FORGIVENESS = 5.0
_MIN_SAMPLES = 20
# What is usual is looked up anew after so many calls: that is slow, and it changes slowly.
_KEPT = 16
_STEP = 0.05
_NUM_LARGE_STEPS = 40
_WEIGHT = 0.2
# Within so many times the quickest, workers are as quick as it, or as planned. A plan tells two workers' rows
# apart by more than their number, so that by that number alone both may seem to be off it.
_EQUAL, _EQUAL_PLANNED = 1.5, 3.0


class Quantile:
    """Follows a quantile of a stream of positive numbers, whatever their scale; one float.

    Each number above it raises it by `p` parts, each below lowers it by 1 - p (stochastic approximation,
    Robbins and Monro, 1951, on the logarithm).
    """

    __slots__ = ("_down", "_p", "_up", "num", "value")

    def __init__(self, p: float) -> None:
        self._p = p
        self._up, self._down = 1.0 + _STEP * p, 1.0 - _STEP * (1.0 - p)
        self.num = 0
        self.value = 0.0

    def add(self, x: float) -> None:
        self.num += 1
        if self.num > _NUM_LARGE_STEPS:
            self.value *= self._up if x > self.value else self._down
        elif self.num == 1:
            self.value = x
        else:
            # Large steps first, so that one odd beginning does not stay.
            step = 2.0 / self.num
            self.value *= 1.0 + step * self._p if x > self.value else 1.0 - step * (1.0 - self._p)


class Latency:
    """Of one pool. Belongs to its thread. With `planned`, what a row costs each worker, a worker that is as
    quick as planned is as quick as the others: times are taken in parts of what it costs."""

    def __init__(self, planned: Mapping[int, float] | None = None) -> None:
        self._planned = planned or {}
        self._slowest = max(self._planned.values(), default=1.0)
        self._equal = _EQUAL_PLANNED if self._planned else _EQUAL
        self._sizes: dict[int, _Size] = {}
        self._workers: dict[int, _Worker] = {}

    def add(self, rank: int, num_rows: int, seconds: float, now: float) -> None:
        """A call of a worker came back after so long. On the path of every call."""
        seconds /= self._planned.get(rank, 1.0)
        bucket = num_rows.bit_length()
        size = self._sizes.get(bucket)
        if size is None:
            size = self._sizes[bucket] = _Size()
        median = size.median
        median.add(seconds)
        if median.num <= _MIN_SAMPLES or not median.num % _KEPT:
            size.expected = self._expected(bucket, 1) or seconds
        worker = self._workers.get(rank)
        if worker is None:
            worker = self._workers[rank] = _Worker()
        # What has been forgiven stays so: else one that was slow once and is tried now and then would have to
        # be quick many times, each a forgiveness apart.
        worker.ratio = worker.cost(now)
        worker.ratio += _WEIGHT * (seconds / size.expected - worker.ratio)
        worker.at = now

    def usual(self, num_pairs: int) -> float | None:
        """The median of calls of this size, or what it can be at most, with the slowest as planned; None: not
        known yet."""
        usual = self._expected(num_pairs.bit_length(), _MIN_SAMPLES)
        return None if usual is None else usual * self._slowest

    def costs(self, ranks: Iterable[int], now: float) -> dict[int, float]:
        """How many times longer than usual, or than planned, each worker takes for a row, at least 1 for the
        quickest."""
        costs = {rank: self._cost(rank, now) for rank in ranks}
        least = min(costs.values(), default=1.0)
        # Noise must not move rows about.
        return {rank: 1.0 if cost < self._equal * least else cost / least for rank, cost in costs.items()}

    def _expected(self, bucket: int, least: int) -> float | None:
        """No more than larger calls take: a slow worker that gets only small ones is not their measure. Of
        calls larger than all known ones: as if each row took its share of the time."""
        known = {size: found.median.value for size, found in self._sizes.items() if found.median.num >= least}
        larger = [value for size, value in known.items() if size >= bucket]
        if larger or not known:
            return min(larger, default=None)
        return min([value * 2.0 ** (bucket - size) for size, value in known.items()])

    def forget(self, rank: int) -> None:
        self._workers.pop(rank, None)

    def _cost(self, rank: int, now: float) -> float:
        worker = self._workers.get(rank)
        return 1.0 if worker is None else worker.cost(now)


class _Size:
    """Calls of one size. `expected` is what one should take, as it was when last looked up."""

    __slots__ = ("expected", "median")

    def __init__(self) -> None:
        self.median = Quantile(0.5)
        self.expected = 0.0


class _Worker:
    """`ratio`: how many times longer than expected it takes; `at`: when it was last heard of."""

    __slots__ = ("at", "ratio")

    def __init__(self) -> None:
        self.ratio = 1.0
        self.at = 0.0

    def cost(self, now: float) -> float:
        if self.ratio <= 1.0:
            return max(0.05, self.ratio)
        forgiven: float = 0.5 ** ((now - self.at) / FORGIVENESS)
        return 1.0 + (self.ratio - 1.0) * forgiven
