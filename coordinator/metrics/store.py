"""Counters and histograms as plain numbers: counting is a few additions, and says nothing of who reads them.

A series has one or several numbers, as its family says; one thread adds to it, any thread reads.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from coordinator.metrics.families import Family

# The name of its family, its labels' values, its numbers.
Series = tuple[str, tuple[str, ...], tuple[float, ...]]
Key = tuple[str, tuple[str, ...]]


class Values(Protocol):
    """A series' numbers where they lie."""

    def __getitem__(self, place: int, /) -> float: ...
    def __setitem__(self, place: int, value: float, /) -> None: ...
    def __iter__(self) -> Iterator[float]: ...


class Counter:
    """A series that only grows."""

    __slots__ = ("_values",)

    def __init__(self, values: Values) -> None:
        self._values = values

    def add(self, amount: float = 1.0) -> None:
        self._values[0] += amount


class Histogram:
    """How often values have been at most as large as each edge, and their sum."""

    __slots__ = ("_edges", "_values")

    def __init__(self, edges: tuple[float, ...], values: Values) -> None:
        self._edges = edges
        self._values = values

    def observe(self, value: float, times: int = 1) -> None:
        values = self._values
        values[bisect_left(self._edges, value)] += times
        values[-1] += value * times


def zeros(key: Key, count: int) -> Values:
    """Numbers that only this process knows."""
    return [0.0] * count


class Store:
    """All series of one process. `allocate` gives a new series its numbers, all of them 0 or what they were
    before."""

    def __init__(self, allocate: Callable[[Key, int], Values] = zeros) -> None:
        self._allocate = allocate
        self._values: dict[Key, Values] = {}

    def counter(self, family: Family, *labels: str) -> Counter:
        """The series with these labels; it is there from now on."""
        return Counter(self._of(family, labels))

    def histogram(self, family: Family, *labels: str) -> Histogram:
        return Histogram(family.edges, self._of(family, labels))

    def series(self) -> list[Series]:
        """All as they are now."""
        return [(name, labels, tuple(values)) for (name, labels), values in list(self._values.items())]

    def _of(self, family: Family, labels: tuple[str, ...]) -> Values:
        key = (family.name, labels)
        found = self._values.get(key)
        if found is None:
            assert len(labels) == len(family.labels), f"{family.name} has the labels {family.labels}"
            found = self._values.setdefault(key, self._allocate(key, family.num_values))
        return found


def summed(series: Iterable[Series]) -> dict[Key, tuple[float, ...]]:
    """Each series once, as the sum of all with its name and labels, in the order of the first ones."""
    found: dict[Key, tuple[float, ...]] = {}
    for name, labels, values in series:
        before = found.get((name, labels))
        same = before is not None and len(before) == len(values)
        found[name, labels] = tuple(map(float.__add__, before, values)) if before and same else values
    return found
