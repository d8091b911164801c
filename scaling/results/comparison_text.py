"""A comparison as lines of Markdown, for a terminal and for a page."""

from collections.abc import Sequence

from scaling.prediction import Interval
from scaling.results.compare import BAR, Compared, Comparison, Reproduced


def comparison_lines(found: Comparison) -> list[str]:
    """A table with a row for each measure of each cell, then what is only in one run, then the tokens."""
    lines = _table(
        ("cell", "measure", "A", "B", "B / A", "interval", ""),
        [_row(row) for row in found.rows],
    )
    for name, labels in (("A", found.only_one), ("B", found.only_other)):
        lines += ["", f"Only {name} has a result of {len(labels)} cells:"] if labels else []
        lines += [f"- {label}" for label in labels]
    if found.num_with_tokens:
        lines += [
            "",
            f"Equal tokens: {found.num_equal_tokens} of {found.num_with_tokens} runs of equal seeds.",
        ]
    return lines


def reproduction_lines(found: Sequence[Reproduced]) -> list[str]:
    """A row for each measure, and each cell that missed."""
    head = ("measure", "unit", "within A's interval", "share", f"{100 * BAR:g} % met")
    lines = _table(head, [_reproduced(each) for each in found])
    for each in found:
        lines += ["", f"{each.measure.title}, outside:"] if each.missed else []
        lines += [
            f"- {label}: {_number(median)}, expected {_interval(interval)}"
            for label, interval, median in each.missed
        ]
    return lines


def unknown_lines(found: Sequence[Reproduced]) -> list[str]:
    """A sentence for the measures that A has no interval of, and why."""
    single = [each.measure.title for each in found if each.met is None and each.most_rounds < 2]
    zero = [each.measure.title for each in found if each.met is None and each.most_rounds >= 2]
    lines = []
    if single:
        lines.append(
            f"{', '.join(single)}: A has one round of each cell, and an interval of another run needs at"
            " least two: `expertmesh sweep FILE --out A --resume --rounds 5` adds the others"
        )
    if zero:
        lines.append(f"{', '.join(zero)}: of each cell A has a round that gave 0, so there is no interval")
    return lines


def _reproduced(each: Reproduced) -> tuple[str, ...]:
    if each.met is None:
        return (each.measure.title, each.measure.unit, "", "", "unknown")
    return (
        *(each.measure.title, each.measure.unit, f"{each.num - len(each.missed)} of {each.num}"),
        *(f"{100 * each.share:.1f} %", "yes" if each.met else "no"),
    )


def _row(row: Compared) -> tuple[str, ...]:
    title = f"{row.measure.title}, {row.measure.unit}" if row.measure.unit else row.measure.title
    medians = (_number(row.one.median), _number(row.other.median))
    if row.ratio is None:
        return (row.label, title, *medians, "", "", row.verdict)
    return (row.label, title, *medians, f"{row.ratio.value:.3f}", _interval(row.ratio), row.verdict)


def _interval(interval: Interval) -> str:
    return f"{_number(interval.low)} to {_number(interval.high)}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[_cell(text) for text in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _cell(text: str) -> str:
    """A name from a file must neither end a row nor move the cursor of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("|", "\\|")
