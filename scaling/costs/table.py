"""Seconds of products, between those that were measured.

A table of (rows, KiB of a matrix) is read by straight lines between logarithms. What is measured may be
disturbed; that more rows or larger matrices take less time is not believed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import exp, log

from scaling.machines import ProductRate

# Between a time that stays, 0, and one that goes with the bytes, 1.
_SMALL = 0.8
_Curve = tuple[tuple[float, ...], tuple[float, ...]]


class ProductTable:
    """Of one kind and one stored form. Raises ValueError for no rates at all."""

    def __init__(self, rates: Iterable[ProductRate]) -> None:
        sizes: dict[float, dict[float, float]] = {}
        for rate in rates:
            # Without a size, a MiB stands for all: beyond it time goes with the bytes.
            kb = rate.matrix_kb or 1024.0
            sizes.setdefault(kb, {})[float(rate.rows)] = 1024 * kb / (1e9 * rate.gbytes_per_s)
        if not sizes:
            raise ValueError("no rates")
        self._is_any = len(sizes) == 1
        self._curves = [(kb, _rising(sizes[kb])) for kb in sorted(sizes)]

    @property
    def middle_kb(self) -> float:
        """A size that was measured."""
        return self._curves[len(self._curves) // 2][0]

    def seconds(self, num_rows: float, kb: float) -> float:
        """Of a product with one matrix. Beyond the table time goes with rows and with bytes; below its
        smallest matrix with a power of them, as a part of it stays; with a single size it goes with bytes everywhere."""
        if num_rows <= 0 or kb <= 0:
            return 0.0
        times = tuple(accumulate((_at(curve, num_rows) for _, curve in self._curves), max))
        kbs = tuple(size for size, _ in self._curves)
        if self._is_any:
            return times[0] * kb / kbs[0]
        return _at((kbs, times), kb) * min(1.0, kb / kbs[0]) ** _SMALL


def _rising(seconds: dict[float, float]) -> _Curve:
    rows = sorted(seconds)
    return tuple(rows), tuple(accumulate((seconds[each] for each in rows), max))


def _at(curve: _Curve, x: float) -> float:
    """On straight lines between logarithms; beyond the last point in proportion, before the first as it."""
    xs, ys = curve
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1] * x / xs[-1]
    right = bisect_left(xs, x)
    return _between(xs, ys, right, x)


def _between(xs: Sequence[float], ys: Sequence[float], right: int, x: float) -> float:
    left = right - 1
    share = log(x / xs[left]) / log(xs[right] / xs[left])
    return exp((1 - share) * log(ys[left]) + share * log(ys[right]))
