"""Each cell's medians over its rounds, with intervals, what was predicted, and by how much that missed."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from scaling.cell import Cell
from scaling.observation import Observation
from scaling.prediction import Interval, Prediction
from scaling.results.intervals import Variance, median_interval, repeat_interval, variances
from scaling.results.measures import BY_NAME, MEASURES, Measure
from scaling.store import Results

# What is predicted, by the measures' names.
PREDICTED = ("tokens_per_s", "gap_ms", "first_token_ms")


class Estimate(NamedTuple):
    """Of one measure of one cell. `interval`: of the median, by bootstrap; None for one round. `repeat`: in
    which the median of a second run with as many rounds falls; None where no cell has two rounds, and for a
    median that is not above 0."""

    median: float
    num: int
    interval: Interval | None
    repeat: Interval | None
    variance: Variance | None


class CellSummary(NamedTuple):
    """`estimates`: of the measures that the cell has, by name. `failures`: reasons, by round."""

    key: str
    cell: Cell
    num_rounds: int
    estimates: Mapping[str, Estimate]
    prediction: Prediction | None
    failures: Mapping[int, str]

    def median(self, name: str) -> float | None:
        return self.estimates[name].median if name in self.estimates else None

    def predicted(self, name: str) -> Interval | None:
        """Of a measure in PREDICTED."""
        found = getattr(self.prediction, name) if self.prediction is not None else None
        return found if isinstance(found, Interval) else None

    def error(self, name: str) -> float | None:
        """(predicted - measured) / measured; None where one of them is missing, or 0 was measured."""
        predicted, measured = self.predicted(name), self.median(name)
        return None if predicted is None or not measured else predicted.value / measured - 1


def summarise(results: Results, measures: Sequence[Measure] = MEASURES) -> list[CellSummary]:
    """Of every cell of the manifest, in its order. Intervals of few measures take less time."""
    ran = {key: by_round(observations) for key, observations in results.of().items()}
    failures: dict[str, dict[int, str]] = {key: {} for key in ran}
    for each in results.observations:
        # What failed first and ran then, ran.
        if each.failed is not None and each.cell in ran and each.round not in ran[each.cell]:
            failures[each.cell][each.round] = each.failed
    estimates: dict[str, dict[str, Estimate]] = {key: {} for key in ran}
    for measure in measures:
        for key, estimate in _estimates(measure, ran, results.manifest.seed).items():
            estimates[key][measure.name] = estimate
    return [
        CellSummary(key, cell, len(ran[key]), estimates[key], results.predictions.get(key), failures[key])
        for key, cell in results.manifest.cells.items()
    ]


def by_round(observations: list[Observation]) -> dict[int, Observation]:
    """The last one of each round, where a run was repeated."""
    return {each.round: each for each in observations}


def values_of(name: str, ran: Mapping[str, Mapping[int, Observation]]) -> Mapping[str, Mapping[int, float]]:
    """Of one measure, by cell and round, as far as they have it."""
    measure = BY_NAME[name]
    found = {}
    for key, of in ran.items():
        values = {number: measure.value(each) for number, each in of.items()}
        found[key] = {number: value for number, value in values.items() if value is not None}
    return found


def _estimates(
    measure: Measure, ran: Mapping[str, Mapping[int, Observation]], seed: int
) -> dict[str, Estimate]:
    values = values_of(measure.name, ran)
    above = {key: of for key, of in values.items() if of and min(of.values()) > 0}
    known = variances(above)
    found = {}
    for key, of in values.items():
        if of:
            middle, variance = median(of.values()), known.get(key)
            repeat = None if variance is None else repeat_interval(middle, variance, len(of), len(of))
            interval = median_interval(list(of.values()), seed)
            found[key] = Estimate(middle, len(of), interval, repeat, variance)
    return found
