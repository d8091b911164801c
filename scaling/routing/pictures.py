"""Pictures of a routing trace: load of layer and expert, how it is spread, drift."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from moe_model.errors import ConfigError
from scaling.routing.summary import Summary

SUFFIXES = (".svg", ".png", ".pdf")
# A trace's ids do not depend on when a picture of it is made.
_STYLE: Any = {"svg.hashsalt": "expertmesh", "font.size": 9}


def plot(found: Summary, shares_LE: np.ndarray, out: Path) -> None:
    """Raises ConfigError for a file of no known kind, or that cannot be written."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: a picture is {', '.join(SUFFIXES)}")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 7), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1.3, 1))
        _heat(figure, grid[0, :], found, shares_LE)
        _ranks(figure, grid[1, 0], found, shares_LE)
        _drift(figure, grid[1, 1], found)
        figure.suptitle(f"{found.name}: routing of {found.num_tokens:,} tokens")
        try:
            figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
        except OSError as error:
            raise ConfigError(f"--out {out}: {error.strerror}") from error


def _heat(figure: Figure, place: SubplotSpec, found: Summary, shares_LE: np.ndarray) -> None:
    axes = figure.add_subplot(place)
    relative_LE = shares_LE * shares_LE.shape[1]
    most = max(2.0, float(relative_LE.max()))
    shades: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": most}
    image = axes.imshow(relative_LE, aspect="auto", interpolation="nearest", **shades)
    axes.set(xlabel="expert", ylabel="layer", title="rows of an expert, over the mean of its layer")
    layers = [layer.layer for layer in found.layers]
    shown = range(0, len(layers), max(1, len(layers) // 12))
    axes.set_yticks(list(shown), [str(layers[at]) for at in shown])
    figure.colorbar(image, ax=axes)


def _ranks(figure: Figure, place: SubplotSpec, found: Summary, shares_LE: np.ndarray) -> None:
    """From the most loaded expert of each layer to the least."""
    axes = figure.add_subplot(place)
    ordered_LE = -np.sort(-shares_LE, axis=1)
    ranks_E = np.arange(1, shares_LE.shape[1] + 1)
    axes.fill_between(
        ranks_E, ordered_LE.min(0), ordered_LE.max(0), alpha=0.25, linewidth=0, label="least to most"
    )
    axes.plot(ranks_E, ordered_LE.mean(0), label="mean of layers")
    axes.axhline(1 / shares_LE.shape[1], color="black", linewidth=0.8, linestyle=":", label="even")
    axes.set(xlabel="rank of an expert in its layer", ylabel="share of rows", title="how load is spread")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _drift(figure: Figure, place: SubplotSpec, found: Summary) -> None:
    axes = figure.add_subplot(place)
    starts = [number * found.window_tokens for number in range(len(found.drift))]
    axes.plot(starts, found.drift, marker=".", label="window to the whole")
    axes.axhline(found.drift_by_chance, color="black", linewidth=0.8, linestyle=":", label="by chance alone")
    axes.set(xlabel="tokens before the window", ylabel="total variation", title="drift")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
