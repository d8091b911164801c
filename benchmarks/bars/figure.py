"""A figure, the bar that was set for it, and whether it is met."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["at least", "at most"]
Word = Literal["beyond", "met", "MISSED"]
_SIGNS = {"at least": ">=", "at most": "<="}


@dataclass(frozen=True, slots=True)
class Bar:
    """`wanted` is what was promised, `beyond` what one would be proud of; both in `unit`."""

    what: str
    direction: Direction
    wanted: float
    beyond: float | None = None
    unit: str = ""

    def judge(self, value: float) -> Word:
        if not self._holds(value, self.wanted):
            return "MISSED"
        return "beyond" if self.beyond is not None and self._holds(value, self.beyond) else "met"

    def _holds(self, value: float, limit: float) -> bool:
        return value >= limit if self.direction == "at least" else value <= limit

    def shown(self, limit: float | None) -> str:
        return "" if limit is None else f"{_SIGNS[self.direction]} {limit:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Figure:
    """What was found, round by round; at least one."""

    bar: Bar
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def word(self) -> Word:
        return self.bar.judge(self.median)

    def as_json(self) -> dict[str, object]:
        return {
            "what": self.bar.what,
            "unit": self.bar.unit.strip(),
            "bar": [self.bar.direction, self.bar.wanted, self.bar.beyond],
            "median": self.median,
            "rounds": list(self.rounds),
            "verdict": self.word,
        }


def lines(figures: Sequence[Figure]) -> Iterator[str]:
    """The table for people."""
    yield _line("figure", "bar", "beyond", "found", "least to greatest, rounds", "verdict")
    for each in figures:
        bar, low, high = each.bar, min(each.rounds), max(each.rounds)
        span = f"{_number(low)} to {_number(high)}, {len(each.rounds)}" if len(each.rounds) > 1 else ""
        found = _number(each.median) + bar.unit
        yield _line(bar.what, bar.shown(bar.wanted), bar.shown(bar.beyond), found, span, each.word)


def _line(what: str, wanted: str, beyond: str, found: str, span: str, word: str) -> str:
    return f"{what:<58} {wanted:>10} {beyond:>10} {found:>9}  {span:<26} {word}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
