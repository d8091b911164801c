"""Predictions against bounds: what is a miss, and what it is called."""

from pathlib import Path

import pytest

from scaling.prediction import Interval, Prediction
from scaling.results.checks import BOUNDS, misses
from scaling.store import Manifest, Results
from tests.scaling.results import made


def results(folder: Path, factors: list[float], bounds: dict[str, float]) -> Results:
    """Cells without noise; each prediction is what was measured times a factor."""
    cells = made.small()[: len(factors)]
    found = made.make(folder, cells, noise=0.0, predicted=False, bounds=bounds)
    for cell in cells:
        assert len({each.tokens_per_s for each in found.of()[cell.key]}) == 1
    found.predicted(prediction(found, cell.key, factor) for cell, factor in zip(cells, factors, strict=True))
    return found


def prediction(found: Results, key: str, factor: float) -> Prediction:
    run = found.of()[key][0]
    assert run.gap_ms is not None
    rate, gap = run.tokens_per_s * factor, run.gap_ms.median * factor
    return Prediction(key, Interval(rate, 0, rate), Interval(gap, 0, gap), Interval(1.0, 0, 1), "memory")


def test_errors_within_the_bounds_are_no_misses(tmp_path: Path) -> None:
    bounds = {"throughput_median": 0.08, "throughput_worst": 0.20, "gap_median": 0.12}
    assert misses(results(tmp_path / "a", [1.07, 0.93, 1.19], bounds)) == []


@pytest.mark.parametrize(
    ("factors", "bound"),
    [
        ([1.09, 0.91, 1.0], "throughput_median"),
        ([1.0, 1.0, 0.79], "throughput_worst"),
        ([1.13, 1.13, 1.0], "gap_median"),
    ],
)
def test_a_miss_says_by_how_much_and_where(tmp_path: Path, factors: list[float], bound: str) -> None:
    limits = {"throughput_median": 0.08, "throughput_worst": 0.20, "gap_median": 0.12}
    found = results(tmp_path / "a", factors, {bound: limits[bound]})
    [sentence] = misses(found)
    assert sentence.startswith(BOUNDS[bound][2])
    assert f"its bound is {100 * limits[bound]:g} %" in sentence
    far = max(range(3), key=lambda n: abs(factors[n] - 1))
    assert list(found.manifest.cells)[far] in sentence


def test_a_misspelt_bound_does_not_hold(tmp_path: Path) -> None:
    [sentence] = misses(results(tmp_path / "a", [1.0], {"throughput": 0.1}))
    assert "'throughput': not known" in sentence
    assert "throughput_worst" in sentence


def test_predictions_of_cells_without_a_measurement_do_not_hold(tmp_path: Path) -> None:
    cells = made.small()
    found = made.make(tmp_path / "a", cells, rounds=0, bounds={"gap_median": 0.1})
    [sentence] = misses(found)
    assert "no cell has both" in sentence


def test_nothing_predicted_misses_nothing(tmp_path: Path) -> None:
    found = made.make(tmp_path / "a", made.small(), predicted=False, bounds={"gap_median": 0.0})
    assert misses(found) == []


def test_no_bound_no_miss(tmp_path: Path) -> None:
    found = results(tmp_path / "a", [2.0, 3.0], {})
    assert isinstance(found.manifest, Manifest)
    assert misses(found) == []
