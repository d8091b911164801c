"""Ledger: what the fronts of one server count together, each in a file of its own that the others read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from coordinator.metrics.number_file import HELD, NumberFile
from coordinator.metrics.store import Key, Series, Store, Values, zeros


class Together:
    """Some numbers of this front's, and the same ones of the others."""

    __slots__ = ("_key", "_others", "own")

    def __init__(self, key: Key, own: Values, others: Sequence[NumberFile]) -> None:
        self._key = key
        self._others = others
        self.own = own

    def each(self) -> list[Values]:
        """This front's, and those of the fronts that have some."""
        found = [file.find(self._key) for file in self._others]
        return [self.own, *(numbers for numbers in found if numbers is not None)]

    def total(self) -> float:
        """The sum of the first of them over all fronts."""
        return sum(numbers[0] for numbers in self.each())

    def add(self, amount: float) -> float:
        """Adds to this front's first; returns the total."""
        self.own[0] += amount
        return self.total()


class Ledger:
    """Of a front that is alone; `shared` for one of several. Used on the front's event loop."""

    def __init__(self, own: NumberFile | None = None, others: Sequence[NumberFile] = ()) -> None:
        self._allocate = zeros if own is None else own.allocate
        self._files = () if own is None else (own, *others)
        self.store = Store(self._allocate)

    @classmethod
    def shared(cls, folder: Path, number: int, num_fronts: int) -> Self:
        """Of the front with this number, counting on from where one before it ended. Raises OSError."""
        files = [NumberFile(_file(folder, each)) for each in range(num_fronts)]
        own = files.pop(number)
        own.release()
        return cls(own, files)

    def series(self) -> list[Series]:
        """What all fronts have counted, and those that were in their places before."""
        if not self._files:
            return self.store.series()
        items = (item for file in self._files for item in file.items())
        return [(name, labels, tuple(numbers)) for (name, labels), numbers in items]

    def held(self, name: str, *labels: str, count: int = 1) -> Together:
        """Numbers that are 0 again when the front dies."""
        return self._together((f"{HELD}{name}", labels), count)

    def kept(self, name: str, *labels: str, count: int = 1) -> Together:
        """Numbers that outlive the front."""
        return self._together((name, labels), count)

    def _together(self, key: Key, count: int) -> Together:
        return Together(key, self._allocate(key, count), self._files[1:])


def release(folder: Path, number: int) -> None:
    """Gives back what a front that has died held. Raises OSError."""
    NumberFile(_file(folder, number)).release()


def _file(folder: Path, number: int) -> Path:
    return folder / f"counts-{number}"
