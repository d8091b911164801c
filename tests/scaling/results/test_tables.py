"""Tables: a row for each run and each cell, equal as Parquet and CSV, and whole or not there."""

import csv
import json
from pathlib import Path
from statistics import median

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling.results import tables
from scaling.results.measures import MEASURES
from scaling.results.tables import write_tables
from scaling.store import Results
from tests.scaling.results import made


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_run_with_its_cell(everything: Results) -> None:
    write_tables(everything)
    rows = pq.read_table(everything.folder / "observations.parquet").to_pylist()
    assert len(rows) == len(everything.observations)
    for row, observation in zip(rows, everything.observations, strict=True):
        cell = everything.manifest.cells[observation.cell]
        assert row["cell"] == observation.cell
        assert row["workers"] == cell.workers
        assert row["link_gbit_per_s"] == cell.link.gbit
        assert row["concurrency"] == cell.load.concurrency
        assert row["tokens_per_s"] == observation.tokens_per_s
        assert row["failed"] == observation.failed
        assert row["loads_LE"] == (observation.loads_LE or None)
        if observation.gap_ms is not None:
            assert row["gap_p99_ms"] == observation.gap_ms.quantiles[-1]
        if observation.cpu_s:
            assert row["cpu_coordinator_s"] == observation.cpu_s["coordinator"]


@pytest.mark.parametrize("name", ["observations", "summary"])
def test_csv_says_what_parquet_says(everything: Results, name: str) -> None:
    write_tables(everything)
    rows = pq.read_table(everything.folder / f"{name}.parquet").to_pylist()
    texts = read_csv(everything.folder / f"{name}.csv")
    assert list(texts[0]) == list(rows[0])
    for row, text in zip(rows, texts, strict=True):
        for column, value in row.items():
            if isinstance(value, list):
                assert json.loads(text[column]) == value
            elif isinstance(value, str):
                assert text[column] == value
            else:
                assert text[column] == "" if value is None else float(text[column]) == value


def test_a_row_for_each_cell_with_medians_intervals_prediction_and_error(small: Results) -> None:
    write_tables(small)
    rows = {row["cell"]: row for row in pq.read_table(small.folder / "summary.parquet").to_pylist()}
    assert list(rows) == list(small.manifest.cells)
    for key, observations in small.of().items():
        row = rows[key]
        middle = median(each.tokens_per_s for each in observations)
        assert row["median_tokens_per_s"] == middle
        assert row["low_tokens_per_s"] <= middle <= row["high_tokens_per_s"]
        assert row["repeat_low_tokens_per_s"] < row["low_tokens_per_s"]
        assert row["repeat_high_tokens_per_s"] > row["high_tokens_per_s"]
        predicted = small.predictions[key].tokens_per_s.value
        assert row["predicted_tokens_per_s"] == predicted
        assert row["error_tokens_per_s"] == pytest.approx((predicted - middle) / middle)
        assert {f"median_{measure.name}" for measure in MEASURES} <= row.keys()


def test_columns_have_one_type_whatever_the_values(small: Results, everything: Results) -> None:
    """Files of several experiments can be put together."""
    for results in (small, everything):
        write_tables(results)
    one, other = (pq.read_schema(r.folder / "observations.parquet") for r in (small, everything))
    both = set(one.names) & set(other.names)
    assert len(both) > 60
    assert {name: one.field(name).type for name in both} == {name: other.field(name).type for name in both}
    assert not any(pa.types.is_null(one.field(name).type) for name in one.names)


def test_a_run_of_an_older_try_is_no_second_round(small: Results) -> None:
    again = msgspec.structs.replace(small.observations[0], tokens_per_s=1.0)
    small.add(again)
    write_tables(small)
    row = pq.read_table(small.folder / "summary.parquet").to_pylist()[0]
    assert row["num_rounds"] == small.manifest.num_rounds
    values = [each.tokens_per_s for each in small.of()[again.cell] if each.round != again.round]
    assert row["median_tokens_per_s"] == median([*values, 1.0])


def test_nothing_is_written_where_a_table_cannot_be_made(
    small: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "summary_rows", lambda _: [{"workers": "many"}])
    with pytest.raises(pa.ArrowInvalid):
        write_tables(small)
    assert {path.suffix for path in small.folder.iterdir()} == {".json", ".jsonl"}


def test_results_without_a_run_have_tables_too(tmp_path: Path) -> None:
    results = made.make(tmp_path / "none", made.small(), rounds=0, predicted=False)
    write_tables(results)
    assert pq.read_table(results.folder / "observations.parquet").num_rows == 0
    assert pq.read_table(results.folder / "summary.parquet").num_rows == len(made.small())
