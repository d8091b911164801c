"""Two runs, cell by cell: how much faster or slower, how sure, and what a second run reproduced."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from scaling.prediction import Interval
from scaling.results.intervals import ratio_interval, repeat_interval
from scaling.results.measures import BY_NAME, PRIMARY, Measure
from scaling.results.summary import CellSummary, Estimate, by_round, summarise
from scaling.store import Results

Verdict = Literal["same", "faster", "slower", "more", "less", "unknown"]
# The share of B's medians that must lie within A's intervals.
BAR = 0.95


class Compared(NamedTuple):
    """One measure of one cell in two runs. `ratio`: B over A, with its interval; None where a median is not
    above 0 or no cell has two rounds."""

    key: str
    label: str
    measure: Measure
    one: Estimate
    other: Estimate
    ratio: Interval | None

    @property
    def verdict(self) -> Verdict:
        if self.ratio is None:
            return "unknown"
        if self.ratio.low <= 1 <= self.ratio.high:
            return "same"
        more = self.ratio.low > 1
        if self.measure.more_is_better is None:
            return "more" if more else "less"
        return "faster" if more == self.measure.more_is_better else "slower"


class Comparison(NamedTuple):
    """`only_one`, `only_other`: labels of cells that one run has a result for and the other has not.
    `num_equal_tokens` of `num_with_tokens`: runs of the same cell with the same seed that drew the same."""

    rows: Sequence[Compared]
    only_one: Sequence[str]
    only_other: Sequence[str]
    num_equal_tokens: int
    num_with_tokens: int


class Reproduced(NamedTuple):
    """Of one measure: how many of B's medians, of the `num` that A has an interval for, lie where A said that
    a second run's would; `missed`: cells' labels with A's interval and B's median. `most_rounds`: of A's
    cells."""

    measure: Measure
    num: int
    missed: Sequence[tuple[str, Interval, float]]
    most_rounds: int

    @property
    def share(self) -> float:
        return 1 - len(self.missed) / self.num if self.num else 0.0

    @property
    def met(self) -> bool | None:
        """None: A has no interval, so it cannot be said."""
        return self.share >= BAR if self.num else None


def compare(one: Results, other: Results, names: Sequence[str] = PRIMARY) -> Comparison:
    """Cells are matched by their keys."""
    measures = [BY_NAME[name] for name in names]
    first = {summary.key: summary for summary in summarise(one, measures) if summary.num_rounds}
    second = {summary.key: summary for summary in summarise(other, measures) if summary.num_rounds}
    rows = [
        _row(first[key], second[key], name)
        for key in first
        if key in second
        for name in names
        if name in first[key].estimates and name in second[key].estimates
    ]
    equal, known = _tokens(one, other)
    return Comparison(
        rows,
        [first[key].cell.label for key in first if key not in second],
        [second[key].cell.label for key in second if key not in first],
        equal,
        known,
    )


def reproduced(rows: Sequence[Compared]) -> list[Reproduced]:
    """By measure, in the order of the rows."""
    found: dict[str, list[Compared]] = {}
    for row in rows:
        found.setdefault(row.measure.name, []).append(row)
    return [_reproduced(BY_NAME[name], of) for name, of in found.items()]


def _reproduced(measure: Measure, rows: Sequence[Compared]) -> Reproduced:
    num, missed = 0, []
    for row in rows:
        if row.one.variance is not None and row.one.median > 0:
            num += 1
            interval = repeat_interval(row.one.median, row.one.variance, row.one.num, row.other.num)
            if not interval.low <= row.other.median <= interval.high:
                missed.append((row.label, interval, row.other.median))
    return Reproduced(measure, num, missed, max(row.one.num for row in rows))


def _row(one: CellSummary, other: CellSummary, name: str) -> Compared:
    a, b = one.estimates[name], other.estimates[name]
    ratio = None
    if a.median > 0 and b.median > 0:
        # Where one run has a single round, what the other knows of the noise is taken for both.
        known = [a.variance or b.variance, b.variance or a.variance]
        both = [variance for variance in known if variance is not None]
        ratio = ratio_interval(a.median, b.median, both, (a.num, b.num)) if len(both) == 2 else None
    return Compared(one.key, one.cell.label, BY_NAME[name], a, b, ratio)


def _tokens(one: Results, other: Results) -> tuple[int, int]:
    first, second = one.of(), other.of()
    equal = known = 0
    for key in first:
        theirs = {each.seed: each.tokens_sha for each in by_round(second.get(key, [])).values()}
        for each in by_round(first[key]).values():
            if each.tokens_sha and theirs.get(each.seed):
                known += 1
                equal += each.tokens_sha == theirs[each.seed]
    return equal, known
