"""Throughput against something of which a cell has one value: two axes side by side, a line for each load."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scaling.results.figures.drawing import FOREGROUND, color, marker, style
from scaling.results.summary import CellSummary

MEASURE = "tokens_per_s"


class Point(NamedTuple):
    """`low` and `high`: where another run's median is expected."""

    x: float
    measured: float
    low: float
    high: float
    predicted: float | None

    def scaled(self, factor: float) -> "Point":
        predicted = None if self.predicted is None else factor * self.predicted
        return Point(self.x, factor * self.measured, factor * self.low, factor * self.high, predicted)


def points(summaries: Sequence[CellSummary], x: Callable[[CellSummary], float]) -> list[Point]:
    """Of cells with a throughput above 0, by x."""
    found = []
    for summary in summaries:
        estimate, predicted = summary.estimates.get(MEASURE), summary.predicted(MEASURE)
        if estimate is not None and estimate.median > 0:
            repeat = estimate.repeat
            low, high = (estimate.median,) * 2 if repeat is None else (repeat.low, repeat.high)
            value = None if predicted is None else predicted.value
            found.append(Point(x(summary), estimate.median, low, high, value))
    return sorted(found)


def draw(axes: Axes, series: Mapping[str, Sequence[Point]]) -> None:
    """Measured with a bar for another run's median; predicted hollow, on a dotted line."""
    for number, (label, found) in enumerate(series.items()):
        look: dict[str, Any] = {"color": color(number), "marker": marker(number)}
        x, y = [p.x for p in found], [p.measured for p in found]
        bars = [[max(0.0, p.measured - p.low) for p in found], [max(0.0, p.high - p.measured) for p in found]]
        axes.errorbar(
            x, y, yerr=bars, label=label, linestyle=style(number), capsize=2, elinewidth=0.9, **look
        )
        known = [(p.x, p.predicted) for p in found if p.predicted is not None]
        if known:
            xs, ys = zip(*known, strict=True)
            axes.plot(xs, ys, linestyle=(0, (1, 2)), linewidth=1.1, fillstyle="none", markersize=8, **look)


def legend(axes: Axes, with_ideal: bool, with_predicted: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if with_predicted:
        look: dict[str, Any] = {"linestyle": (0, (1, 2)), "fillstyle": "none", "marker": "o", "markersize": 8}
        handles.append(Line2D([], [], color=FOREGROUND, **look))
        labels.append("predicted")
    if with_ideal:
        handles.append(Line2D([], [], color=FOREGROUND, linestyle="--", linewidth=0.9))
        labels.append("ideal")
    # To the right of the axes, where it covers nothing.
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0.0)
