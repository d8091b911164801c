"""Where a mean step's time goes, measured beside predicted."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from scaling.observation import Observation
from scaling.results.aspects import shortened
from scaling.results.figures.drawing import FOREGROUND, Canvas, color
from scaling.results.figures.view import Part, View
from scaling.results.html import Field, figure, number, table

MAX_ROWS, MAX_FIGURES = 24, 3
Split = Mapping[str, float]


class Rows(NamedTuple):
    """Milliseconds of a mean step by part."""

    label: str
    measured: Split
    predicted: Split


def part(view: View) -> Part | None:
    """None where no run has a split; a table where one cell has."""
    ran = view.results.of()
    rows = [
        Rows(view.words(s), split_of(ran[s.key]), s.prediction.split_ms if s.prediction is not None else {})
        for s in view.summaries
    ]
    rows = [row for row in rows if row.measured]
    if not rows:
        return None
    parts = list(dict.fromkeys(name for row in rows for name in (*row.measured, *row.predicted)))
    title = "Where a step's time goes"
    if len(rows) == 1:
        return Part(title, "Milliseconds of a mean step, by part.", _table(rows[0], parts))
    reading = (
        "A bar is a mean step in milliseconds: above as measured (median over the rounds), "
        "below it, paler, as "
        "predicted where it was. docs/sweep.md says what belongs to each part."
    )
    starts = range(0, len(rows), MAX_ROWS)[:MAX_FIGURES]
    return Part(title, reading, "".join(figure(_drawn(rows[at : at + MAX_ROWS], parts)) for at in starts))


def split_of(observations: Sequence[Observation]) -> dict[str, float]:
    """Medians over the rounds."""
    names = dict.fromkeys(name for each in observations for name in each.split_ms)
    return {n: median([each.split_ms[n] for each in observations if n in each.split_ms]) for n in names}


def _drawn(rows: Sequence[Rows], parts: Sequence[str]) -> str:
    with Canvas(1, 1, 1.2 + 0.36 * len(rows)) as canvas:
        axes = canvas.axes[0]
        for y, row in enumerate(rows):
            for split, shift, alpha in ((row.measured, -0.19, 1.0), (row.predicted, 0.19, 0.45)):
                start = 0.0
                for index, name in enumerate(parts):
                    width = split.get(name, 0.0)
                    axes.barh(
                        y + shift, width, 0.34, start, color=color(index), alpha=alpha, edgecolor="none"
                    )
                    start += width
        handles = [axes.barh(0, 0, color=color(index)) for index in range(len(parts))]
        labels = [shortened(name) for name in parts]
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=6)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ms of a mean step", color=FOREGROUND)
    return canvas.svg


def _table(row: Rows, parts: Sequence[str]) -> str:
    rows = [[Field(name), number(row.measured.get(name)), number(row.predicted.get(name))] for name in parts]
    return table(("part", "measured, ms", "predicted, ms"), rows)
