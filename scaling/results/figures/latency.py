"""Distributions of the time to the first token and of the gaps between tokens, a row for each cell."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from matplotlib.axes import Axes

from scaling.observation import QUANTILES, Observation, Spread
from scaling.results.figures.drawing import FOREGROUND, SERIES, Canvas, plain_log
from scaling.results.figures.view import Part, View
from scaling.results.html import Field, figure, number, table

# Rows that one figure has room for, and how many figures there are at most.
MAX_ROWS, MAX_FIGURES = 36, 3
Row = tuple[float, ...]


class Rows(NamedTuple):
    """Quantiles of QUANTILES in ms, medians over the rounds; empty where a cell has none."""

    label: str
    first: Row
    gap: Row


def part(view: View) -> Part | None:
    """None where no run has either; a table where one cell has."""
    ran = view.results.of()
    rows = [
        Rows(view.words(s), _quantiles(ran[s.key], _first), _quantiles(ran[s.key], _gap))
        for s in view.summaries
    ]
    rows = [row for row in rows if row.first or row.gap]
    if not rows:
        return None
    reading = (
        "The thin line reaches from the 5th to the 95th percentile, the thick one has the "
        "middle half, the dot is "
        "the median, the tick the 99th percentile; each is the median over the rounds. Milliseconds; the "
        "axis is logarithmic."
    )
    if len(rows) == 1:
        return Part("Latency", "Percentiles, medians over the rounds, in milliseconds.", _table(rows[0]))
    starts = range(0, len(rows), MAX_ROWS)[:MAX_FIGURES]
    return Part("Latency", reading, "".join(figure(_drawn(rows[at : at + MAX_ROWS])) for at in starts))


def _first(observation: Observation) -> Spread | None:
    return observation.first_token_ms


def _gap(observation: Observation) -> Spread | None:
    return observation.gap_ms


def _quantiles(observations: Sequence[Observation], of: Callable[[Observation], Spread | None]) -> Row:
    spreads = [spread for observation in observations if (spread := of(observation)) is not None]
    known = [spread.quantiles for spread in spreads if len(spread.quantiles) == len(QUANTILES)]
    return tuple(median(values) for values in zip(*known, strict=True))


def _drawn(rows: Sequence[Rows]) -> str:
    with Canvas(1, 2, 1.0 + 0.24 * len(rows)) as canvas:
        left, right = canvas.axes
        _draw(left, [row.first for row in rows], SERIES[0])
        _draw(right, [row.gap for row in rows], SERIES[1])
        left.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
        right.set_yticks(range(len(rows)), [""] * len(rows))
        left.set_xlabel("to the first token, ms")
        right.set_xlabel("between two tokens, ms")
    return canvas.svg


def _draw(axes: Axes, rows: Sequence[Row], color: str) -> None:
    p5, p25, p50, p75, p95, p99 = (QUANTILES.index(percent) for percent in (5, 25, 50, 75, 95, 99))
    for y, row in enumerate(rows):
        if row and row[p5] > 0:
            axes.plot([row[p5], row[p95]], [y, y], color=color, linewidth=1)
            axes.plot(
                [row[p25], row[p75]], [y, y], color=color, linewidth=5, alpha=0.6, solid_capstyle="butt"
            )
            axes.plot(row[p50], y, marker="o", color=FOREGROUND, markersize=3.5)
            axes.plot(row[p99], y, marker="|", color=color, markersize=7)
    plain_log(axes, "x")
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _table(row: Rows) -> str:
    head = ("", *(f"p{percent}" for percent in QUANTILES))
    named = (("to the first token, ms", row.first), ("between two tokens, ms", row.gap))
    return table(head, [[Field(name), *map(number, values)] for name, values in named if values])
