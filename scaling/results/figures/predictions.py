"""Prediction against measurement: a point for each cell, the diagonal, and the bound on both sides of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from scaling.results.aspects import grouped
from scaling.results.checks import misses_of
from scaling.results.figures.drawing import FOREGROUND, GRID, Canvas, color, marker, plain_log
from scaling.results.figures.view import Part, View
from scaling.results.html import Field, figure, number, table
from scaling.results.measures import BY_NAME
from scaling.results.summary import PREDICTED, CellSummary

# Of the band beside the diagonal, by measure, where the manifest has no bound: none is claimed then.
BANDS = {"tokens_per_s": "throughput_worst", "gap_ms": "gap_worst", "first_token_ms": "first_token_worst"}


def part(view: View) -> Part | None:
    """None where no cell has both; a table alone where one cell has them."""
    known = [summary for summary in view.summaries if summary.error("tokens_per_s") is not None]
    if not known:
        return None
    bounds = view.results.manifest.bounds
    body = ""
    if bounds and not misses_of(bounds, view.summaries):
        body = "<p>All bounds of the experiment hold.</p>"
    if len(known) > 1:
        body += figure(_drawn(view, known))
    reading = (
        "On the diagonal a prediction is what was measured; above it, more was predicted. The "
        "band is the bound "
        "that the experiment set for its worst cell, where it set one. An error is "
        "(predicted - measured) / measured."
    )
    return Part("Prediction against measurement", reading, body + _errors(known))


def cells_part(view: View) -> Part | None:
    """Every cell that has a prediction and a measurement; None where none has."""
    known = [summary for summary in view.summaries if summary.error("tokens_per_s") is not None]
    if not known:
        return None
    reading = "What a step waits for most, by the simulation, is in the last column."
    return Part("Predictions, cell by cell", reading, _table(view, known))


def _drawn(view: View, known: Sequence[CellSummary]) -> str:
    bounds = view.results.manifest.bounds
    with Canvas(1, len(PREDICTED), 3.7) as canvas:
        for axes, name in zip(canvas.axes, PREDICTED, strict=True):
            series = grouped(known, lambda s: s.cell, ("model",))
            for index, (label, of) in enumerate(series.items()):
                look: dict[str, Any] = {
                    "color": color(index),
                    "marker": marker(index),
                    "linestyle": "none",
                    "alpha": 0.85,
                }
                pairs = [(s.median(name), p.value) for s in of if (p := s.predicted(name)) and s.median(name)]
                if pairs:
                    axes.plot(*zip(*pairs, strict=True), label=label, markersize=4.5, **look)
            _diagonal(axes, bounds.get(BANDS[name]))
            measure = BY_NAME[name]
            axes.set_title(f"{measure.title}, {measure.unit}")
            axes.set_xlabel("measured")
        canvas.axes[0].set_ylabel("predicted")
        if len(series) > 1:
            handles, labels = canvas.axes[0].get_legend_handles_labels()
            canvas.figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return canvas.svg


def _diagonal(axes: Axes, bound: float | None) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    line = np.geomspace(low, high, 20)
    axes.plot(line, line, color=FOREGROUND, linewidth=0.9)
    if bound is not None:
        axes.fill_between(
            line, line * max(0.0, 1 - bound), line * (1 + bound), color=GRID, alpha=0.6, zorder=0
        )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_box_aspect(1)
    plain_log(axes, "x")
    plain_log(axes, "y")


def _errors(known: Sequence[CellSummary]) -> str:
    rows = []
    for name in PREDICTED:
        errors = sorted(abs(error) for summary in known if (error := summary.error(name)) is not None)
        if errors:
            values = (float(np.median(errors)), errors[-1])
            rows.append([Field(BY_NAME[name].title), number(len(errors)), *(_percent(v) for v in values)])
    return table(("predicted", "cells", "median error", "worst error"), rows)


def _table(view: View, known: Sequence[CellSummary]) -> str:
    rows = []
    for summary in known:
        row = [Field(view.words(summary), hint=summary.key)]
        for name in PREDICTED:
            predicted = summary.predicted(name)
            row += [number(summary.median(name)), number(None if predicted is None else predicted.value)]
            row.append(_percent(summary.error(name), signed=True))
        rows.append([*row, Field(summary.prediction.binds if summary.prediction is not None else "")])
    heads = [f"{BY_NAME[name].title}, {BY_NAME[name].unit}" for name in PREDICTED]
    head = ["cell", *(text for name in heads for text in (name, "predicted", "error")), "binds"]
    return table(head, rows)


def _percent(value: float | None, signed: bool = False) -> Field:
    if value is None:
        return Field("")
    return Field(f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %", 100 * value)
