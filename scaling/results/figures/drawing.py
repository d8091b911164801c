"""How figures are drawn: colours that follow the page's, sizes, and SVG that stands inside of a page.

A figure is drawn in placeholder colours, which become the page's CSS variables: it reads on a light page and
on a dark one.
"""

import io
import re
import warnings
from math import ceil, floor, log10
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

FOREGROUND, GRID, PAPER = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0102{number:02x}" for number in range(16, 24))
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "v", "P", "X", "D", "*")
VARIABLES = {FOREGROUND: "--ink", GRID: "--line", PAPER: "--paper"} | {
    color: f"--s{number}" for number, color in enumerate(SERIES)
}
WIDTH = 9.6
# How many times its beginning an axis ends at, where more than powers of ten are named.
MOST_STEPS = 300
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    # A name may have a dollar sign, which begins a formula.
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": FOREGROUND,
    "axes.labelcolor": FOREGROUND,
    "axes.edgecolor": GRID,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FOREGROUND,
    "ytick.color": FOREGROUND,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


class Canvas:
    """One figure: `axes` to draw on inside of the block, then `svg`."""

    def __init__(self, rows: int, columns: int, height: float) -> None:
        """`height` in inches."""
        self._context = mpl.rc_context(SETTINGS)
        self._rows, self._columns, self._height = rows, columns, height
        self.svg = ""

    def __enter__(self) -> "Canvas":
        self._context.__enter__()
        self.figure = Figure(figsize=(WIDTH, self._height), layout="constrained")
        FigureCanvasSVG(self.figure)
        self.axes: list[Axes] = list(self.figure.subplots(self._rows, self._columns, squeeze=False).flat)
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                self.svg = _svg(self.figure)
        finally:
            self._context.__exit__(None, None, None)


def color(number: int) -> str:
    return SERIES[number % len(SERIES)]


def style(number: int) -> str:
    """Other lines where colours begin again."""
    return STYLES[number // len(SERIES) % len(STYLES)]


def marker(number: int) -> str:
    """Colours alone are not told apart by every reader."""
    return MARKERS[number % len(MARKERS)]


def plain_log(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers, also between powers of ten where there is room."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    axis.set_major_formatter(FuncFormatter(_number))
    if low > 0 and high / low < MOST_STEPS:
        axis.set_major_locator(FixedLocator([tick for tick in _steps(low, high) if low <= tick <= high]))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _steps(low: float, high: float) -> list[float]:
    """Round numbers between two, five or so."""
    if high / low > 4:
        powers = range(floor(log10(low)), ceil(log10(high)))
        return [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [float(tick) for tick in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _number(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        # A name may have characters that no font here has; the reader's browser may.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = re.sub(r"^.*?(?=<svg)", "", out.getvalue(), count=1, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1).replace(
        "<svg ", '<svg role="img" ', 1
    )
