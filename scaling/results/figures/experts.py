"""How rows fell on experts: a map of layer x expert for each model and skew."""

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from scaling.results.aspects import grouped, shortened
from scaling.results.figures.drawing import Canvas
from scaling.results.figures.view import Part, View
from scaling.results.html import figure

COLUMNS, MAX_MAPS = 2, 8


def part(view: View) -> Part | None:
    """None where no run says its experts' loads."""
    ran, maps = view.results.of(), {}
    for title, of in grouped(view.summaries, lambda s: s.cell, ("model", "layers", "skew")).items():
        loads = [each.loads_LE for summary in of for each in ran[summary.key] if each.loads_LE]
        if (load_LE := _sum(loads)) is not None:
            maps[title.replace(", all layers", "")] = load_LE
    if not maps:
        return None
    reading = (
        "A row is a layer, a column an expert, over all runs of a model: rows that the expert "
        "got over those of an "
        "even split. 1 is even; at 3 an expert got three times its share, and the worker that holds it, "
        "without a copy elsewhere, as much more to do."
    )
    return Part("Load of layers and experts", reading, figure(_drawn(dict(list(maps.items())[:MAX_MAPS]))))


def _sum(loads: list[list[list[int]]]) -> NDArray[np.float64] | None:
    """Over runs of one shape, over the mean of each layer; None where there is nothing to add. [L, E]"""
    tables = [
        np.asarray(load, dtype=np.float64)
        for load in loads
        if load and load[0] and len({len(row) for row in load}) == 1
    ]
    same = [each for each in tables if each.shape == tables[0].shape]
    if not same:
        return None
    load_LE: NDArray[np.float64] = np.sum(same, axis=0)
    mean_L1 = load_LE.mean(axis=1, keepdims=True)
    return load_LE / np.where(mean_L1 > 0, mean_L1, 1.0) if load_LE.any() else None


def _drawn(maps: dict[str, NDArray[np.float64]]) -> str:
    columns = min(COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    most = max(2.0, max(float(load_LE.max()) for load_LE in maps.values()))
    with Canvas(rows, columns, 0.3 + 2.1 * rows) as canvas:
        for axes, (title, load_LE) in zip(canvas.axes, maps.items(), strict=False):
            image = axes.imshow(load_LE, aspect="auto", vmin=0, vmax=most, interpolation="nearest")
            axes.set_title(f"{shortened(title)} (most: {load_LE.max():.2f})", fontsize=9)
            axes.grid(visible=False)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("expert")
            axes.set_ylabel("layer")
        for axes in canvas.axes[len(maps) :]:
            axes.set_axis_off()
        bar = canvas.figure.colorbar(image, ax=canvas.axes, shrink=0.9)
        bar.set_label("rows over an even split")
    return canvas.svg
