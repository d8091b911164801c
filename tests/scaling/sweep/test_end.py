"""The folder that is gone on with, and what is said at the end."""

from pathlib import Path

import pytest

from coordinator.commands.sweep_arguments import SweepArguments
from moe_model.errors import ConfigError
from scaling.cell import Cell, Load
from scaling.commands.sweep_end import conclude
from scaling.observation import Observation
from scaling.prediction import Interval, Prediction
from scaling.store import Results
from scaling.sweep.agreement import different_tokens
from scaling.sweep.experiment import Experiment, Plan
from scaling.sweep.given import chosen
from scaling.sweep.manifest import begun

ONE, TWO = (Cell(model="m", workers=num, dtype="float32", load=Load(concurrency=2)) for num in (1, 2))
CELLS = {cell.key: cell for cell in (ONE, TWO)}


def plan(seed: int = 0, bounds: dict[str, float] | None = None, cells: dict[str, Cell] | None = None) -> Plan:
    experiment = Experiment("x", seed=seed, bounds=bounds or {})
    return Plan(experiment, CELLS if cells is None else cells, Path())


def observed(cell: Cell, number: int = 0, sha: str = "a", failed: str | None = None) -> Observation:
    return Observation(
        *(cell.key, number, 3, "2026-01-01T00:00:00+00:00", 2.0, failed),
        num_requests=4,
        num_tokens=10,
        tokens_per_s=5.0,
        tokens_sha=sha,
    )


def test_results_that_are_there_are_not_written_over(tmp_path: Path) -> None:
    begun(tmp_path, plan(), 2, is_resumed=False)
    with pytest.raises(ConfigError, match="--resume"):
        begun(tmp_path, plan(), 2, is_resumed=False)


def test_going_on_keeps_results_and_says_when(tmp_path: Path) -> None:
    first = begun(tmp_path, plan(), 2, is_resumed=True)
    first.add(observed(ONE))
    again = begun(tmp_path, plan(), 5, is_resumed=True)
    assert again.observations == first.observations
    manifest = Results.open(tmp_path).manifest
    assert manifest.num_rounds == 5
    assert len(manifest.machine["resumed"]) == 1
    assert manifest.machine["date"] == first.manifest.machine["date"]


@pytest.mark.parametrize("other", [plan(seed=1), plan(cells={ONE.key: ONE})])
def test_going_on_with_something_else(tmp_path: Path, other: Plan) -> None:
    begun(tmp_path, plan(), 2, is_resumed=False)
    with pytest.raises(ConfigError, match=r"other cells|of seed 0"):
        begun(tmp_path, other, 2, is_resumed=True)


def test_the_end_of_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = begun(tmp_path, plan(), 1, is_resumed=False)
    results.add(observed(ONE))
    results.add(observed(TWO))
    assert conclude(plan(), results, CELLS) == 0
    said = capsys.readouterr()
    assert ONE.key in said.out
    assert str(tmp_path / "report.html") in said.out
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "observations.parquet").is_file()
    assert said.err == ""


def test_a_cell_without_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = begun(tmp_path, plan(), 1, is_resumed=False)
    results.add(observed(ONE))
    results.add(observed(TWO, failed="no room"))
    assert conclude(plan(), results, CELLS) == 1
    assert f"no result: {TWO.label} ({TWO.key}): no room" in capsys.readouterr().err
    assert conclude(plan(), results, {ONE.key: ONE}) == 0


def test_predictions_that_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bounded = plan(bounds={"throughput_median": 0.1})
    results = begun(tmp_path, bounded, 1, is_resumed=False)
    results.add(observed(ONE))
    results.add(observed(TWO))
    one = Interval(1.0, 1.0, 1.0)
    results.predicted(
        [
            Prediction(key, Interval(rate, 0, 9), one, one, "")
            for key, rate in ((ONE.key, 5.0), (TWO.key, 5.4))
        ]
    )
    assert conclude(bounded, results, CELLS) == 0
    results.predicted([Prediction(key, Interval(8.0, 0, 9), one, one, "") for key in CELLS])
    assert conclude(bounded, results, CELLS) == 1
    assert "60.0 %" in capsys.readouterr().err


def test_tokens_that_differ(tmp_path: Path) -> None:
    results = begun(tmp_path, plan(), 2, is_resumed=False)
    results.add(observed(ONE, sha="a"))
    results.add(observed(TWO, sha="a"))
    assert different_tokens(results) == []
    results.add(observed(TWO, 1, sha="b"))
    (said,) = different_tokens(results)
    assert ONE.key in said
    assert TWO.key in said
    assert conclude(plan(), results, CELLS) == 1


def test_only() -> None:
    assert chosen(CELLS, (ONE.key,)) == {ONE.key: ONE}
    assert chosen(CELLS, ("2 WORKERS",)) == {TWO.key: TWO}
    assert chosen(CELLS, ()) == CELLS
    with pytest.raises(ConfigError, match="--only z"):
        chosen(CELLS, (ONE.key, "z"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "FILE is missing"),
        ({"file": "report"}, "report needs 1 folder"),
        ({"file": "compare", "first": Path("a")}, "compare needs 2 folders"),
        ({"file": "x.yaml", "first": Path("a")}, "unexpected argument 'a'"),
        ({"file": "export", "first": Path("a")}, "export needs --to"),
        ({"file": "x.yaml", "to": "vllm"}, "--to is of export"),
        ({"file": "x.yaml", "between_runs": True}, "--between-runs is of compare"),
        ({"file": "report", "first": Path("a"), "rounds": 9}, "report has no --rounds"),
        ({"file": "report", "first": Path("a"), "out": Path("b")}, "report has no --out"),
        ({"file": "export", "first": Path("a"), "to": "vllm", "only": ("b",)}, "export has no --only"),
    ],
)
def test_arguments_that_do_not_go_together(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SweepArguments(**given)  # type: ignore[arg-type]
