"""What the network cost: throughput by link, and as a share of that without one."""

from collections.abc import Mapping, Sequence

from scaling.link import Link
from scaling.results.aspects import grouped, shortened
from scaling.results.figures.drawing import Canvas, plain_log
from scaling.results.figures.lines import Point, draw, legend, points
from scaling.results.figures.view import MAX_PANELS, Part, View
from scaling.results.html import figure
from scaling.results.summary import CellSummary

Lines = Mapping[str, Sequence[Point]]


def part(view: View) -> Part | None:
    """None where no cells differ in their links alone."""
    summaries = [summary for summary in view.summaries if summary.cell.fault is None]
    links = sorted({summary.cell.link for summary in summaries}, key=_speed)
    panels = {}
    for title, of in grouped(summaries, lambda s: s.cell, view.others("link", "load", "where")).items():
        lines = _lines(of, links)
        if lines:
            panels[title] = lines
    if not panels:
        return None
    drawn = [
        figure(_drawn(lines, links), shortened(title)) for title, lines in list(panels.items())[:MAX_PANELS]
    ]
    reading = (
        "From the left to the right the link between coordinator and workers gets slower. Left: "
        "tokens a second. "
        "Right: the same as a share of the fastest link's; what is missing to 100 % is what the network cost."
    )
    return Part("What the network cost", reading, "".join(drawn))


def _speed(link: Link) -> tuple[float, float, float]:
    return (-(link.gbit or float("inf")), link.delay_ms, link.loss_percent)


def _lines(summaries: Sequence[CellSummary], links: Sequence[Link]) -> Lines:
    found = {}
    for label, of in grouped(summaries, lambda s: s.cell, ("load",)).items():
        line = points(of, lambda s: float(links.index(s.cell.link)))
        if len({point.x for point in line}) > 1:
            found[shortened(label)] = line
    return found


def _drawn(lines: Lines, links: Sequence[Link]) -> str:
    with Canvas(1, 2, 3.5) as canvas:
        left, right = canvas.axes
        draw(left, lines)
        draw(
            right, {label: [p.scaled(100 / line[0].measured) for p in line] for label, line in lines.items()}
        )
        plain_log(left, "y")
        left.set_ylabel("tokens/s")
        right.set_ylabel("of the fastest link, %")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.set_xticks(range(len(links)), [str(link).replace(", ", "\n") for link in links])
            axes.set_xlim(-0.3, len(links) - 0.7)
        is_predicted = any(point.predicted is not None for line in lines.values() for point in line)
        legend(right, with_ideal=False, with_predicted=is_predicted)
    return canvas.svg
