"""A folder of results: nothing is lost that was added, and a killed run leaves a folder that opens."""

from pathlib import Path

import pytest

from moe_model.errors import ConfigError
from scaling.cell import Cell, Load
from scaling.observation import Observation
from scaling.prediction import Interval, Prediction
from scaling.store import OBSERVATIONS, Manifest, Results

CELL = Cell(model="demo/checkpoint", load=Load(concurrency=1))
MANIFEST = Manifest(1, "test", {}, {}, 0, 2, {CELL.key: CELL})


def seen(number: int, failed: str | None = None) -> Observation:
    return Observation(CELL.key, number, number, "2026-01-01T00:00:00+00:00", 1.0, failed)


def test_what_was_added_is_there(tmp_path: Path) -> None:
    results = Results.create(tmp_path / "out", MANIFEST)
    for number in range(3):
        results.add(seen(number))
    one = Interval(1.0, 0.5, 2.0)
    results.predicted([Prediction(CELL.key, one, one, one, "experts")])
    again = Results.open(tmp_path / "out")
    assert again.manifest == MANIFEST
    assert again.observations == results.observations == [seen(n) for n in range(3)]
    assert again.predictions == results.predictions
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []


def test_a_broken_last_line_runs_again(tmp_path: Path) -> None:
    results = Results.create(tmp_path, MANIFEST)
    results.add(seen(0))
    results.add(seen(1))
    path = tmp_path / OBSERVATIONS
    path.write_bytes(path.read_bytes()[:-40])
    again = Results.open(tmp_path)
    assert again.observations == [seen(0)]
    again.add(seen(2))
    assert Results.open(tmp_path).observations == [seen(0), seen(2)]


def test_a_last_line_without_its_end_is_no_line(tmp_path: Path) -> None:
    """It may be whole and lack its end alone: then the next one would be appended to it."""
    results = Results.create(tmp_path, MANIFEST)
    results.add(seen(0))
    path = tmp_path / OBSERVATIONS
    path.write_bytes(path.read_bytes()[:-1])
    again = Results.open(tmp_path)
    again.add(seen(1))
    assert Results.open(tmp_path).observations == again.observations


def test_a_broken_line_within_is_refused(tmp_path: Path) -> None:
    Results.create(tmp_path, MANIFEST)
    (tmp_path / OBSERVATIONS).write_text("{\n{}\n")
    with pytest.raises(ConfigError, match="line 1: not JSON"):
        Results.open(tmp_path)


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    Results.create(tmp_path, MANIFEST)
    with pytest.raises(ConfigError, match="has results already"):
        Results.create(tmp_path, MANIFEST)
    with pytest.raises(ConfigError, match=r"manifest\.json is missing"):
        Results.open(tmp_path / "absent")


def test_what_failed_is_kept_and_does_not_count(tmp_path: Path) -> None:
    results = Results.create(tmp_path, MANIFEST)
    results.add(seen(0, "it did not start"))
    results.add(seen(1))
    assert Results.open(tmp_path).of() == {CELL.key: [seen(1)]}
