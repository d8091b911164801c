"""Throughput and efficiency against the number of workers, beside the ideal and what was predicted."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from scaling.results.aspects import grouped, shortened
from scaling.results.figures.drawing import Canvas, color, plain_log
from scaling.results.figures.lines import Point, draw, legend, points
from scaling.results.figures.view import MAX_PANELS, Part, View
from scaling.results.html import figure
from scaling.results.summary import CellSummary

# With more workers than these the axis is logarithmic.
MOST_LINEAR = 16
Lines = Mapping[str, Sequence[Point]]


def part(view: View) -> Part | None:
    """A figure for each combination of all else but the load, which has a line each. None where no cells
    differ in their workers alone."""
    summaries = [summary for summary in view.summaries if summary.cell.fault is None]
    panels = {}
    for title, of in grouped(summaries, lambda s: s.cell, view.others("workers", "load", "hosts")).items():
        lines = _lines(of)
        if lines:
            panels[title] = lines
    if not panels:
        return None
    body = "".join(
        figure(_drawn(lines), shortened(title)) for title, lines in list(panels.items())[:MAX_PANELS]
    )
    reading = (
        "Left: tokens a second of all requests together; the bar is where the median of another "
        "run is expected. "
        "Right: throughput per worker over that of the fewest workers; 100 % is ideal, and "
        "below it each worker "
        "that was added brings less. 0 workers: all experts in the coordinator's process; no "
        "efficiency is said "
        "of it."
    )
    return Part("Throughput and efficiency against workers", reading, body)


def _lines(summaries: Sequence[CellSummary]) -> Lines:
    found = {}
    for label, of in grouped(summaries, lambda s: s.cell, ("load", "hosts")).items():
        line = points(of, lambda s: float(s.cell.workers))
        if len({point.x for point in line}) > 1:
            found[shortened(label.removesuffix(", even hosts"))] = line
    return found


def _drawn(lines: Lines) -> str:
    counts = sorted({point.x for line in lines.values() for point in line})
    is_log = counts[-1] > MOST_LINEAR
    with Canvas(1, 2, 3.3) as canvas:
        left, right = canvas.axes
        shown = {label: [p for p in line if p.x > 0 or not is_log] for label, line in lines.items()}
        draw(left, shown)
        draw(right, {label: _efficiency(line) for label, line in shown.items()})
        for number, line in enumerate(shown.values()):
            ideal = [(p.x, _base(line).measured * p.x / _base(line).x) for p in line if p.x > 0]
            if len(ideal) > 1:
                xs, ys = zip(*ideal, strict=True)
                left.plot(xs, ys, linestyle="--", linewidth=0.9, color=color(number), alpha=0.6)
        plain_log(left, "y")
        left.set_ylabel("tokens/s")
        right.axhline(100, linestyle="--", linewidth=0.9, color=color(0), alpha=0.6)
        right.set_ylim(bottom=0)
        right.set_ylabel("efficiency, %")
        for axes in (left, right):
            _ticks(axes, [count for count in counts if count > 0 or not is_log], is_log)
        is_predicted = any(point.predicted is not None for line in lines.values() for point in line)
        legend(right, with_ideal=True, with_predicted=is_predicted)
    return canvas.svg


def _base(line: Sequence[Point]) -> Point:
    """Of the fewest workers that are any."""
    return next(point for point in line if point.x > 0)


def _efficiency(line: Sequence[Point]) -> list[Point]:
    """In percent; predicted over the measured base, so that both curves have one scale."""
    base = _base(line)
    return [point.scaled(100 * base.x / (base.measured * point.x)) for point in line if point.x > 0]


def _ticks(axes: Axes, counts: Sequence[float], is_log: bool) -> None:
    if is_log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:g}" for count in counts], minor=False)
    axes.minorticks_off() if is_log else None
    axes.set_xlabel("workers")
