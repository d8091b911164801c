"""Tables of results as Parquet and CSV: a row for each run, and a row for each cell."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scaling.results.columns import Row, cell_columns, observation_columns
from scaling.results.measures import MEASURES
from scaling.results.summary import PREDICTED, CellSummary, summarise
from scaling.store import Results, write_whole

OBSERVATIONS, SUMMARY = "observations", "summary"


def write_tables(results: Results) -> None:
    """observations and summary, each as .parquet and .csv, into the results' folder. All four are made before
    the first is written, and each is written whole or not at all. Raises OSError."""
    files = {}
    for name, rows in (
        (OBSERVATIONS, observation_rows(results)),
        (SUMMARY, summary_rows(summarise(results))),
    ):
        files[f"{name}.parquet"] = _parquet(rows)
        files[f"{name}.csv"] = _csv(rows)
    for name, data in files.items():
        write_whole(results.folder / name, data)


def observation_rows(results: Results) -> list[Row]:
    """In the order in which they ran; those that failed have `failed`. Of cells of the manifest only."""
    cells = results.manifest.cells
    return [
        cell_columns(each.cell, cells[each.cell]) | observation_columns(each)
        for each in results.observations
        if each.cell in cells
    ]


def summary_rows(summaries: Sequence[CellSummary]) -> list[Row]:
    return [_summary_row(summary) for summary in summaries]


def _summary_row(summary: CellSummary) -> Row:
    row = cell_columns(summary.key, summary.cell)
    row |= {"num_rounds": summary.num_rounds, "num_rounds_failed": len(summary.failures)}
    for measure in MEASURES:
        estimate = summary.estimates.get(measure.name)
        interval = None if estimate is None else estimate.interval
        repeat = None if estimate is None else estimate.repeat
        row |= {
            f"median_{measure.name}": None if estimate is None else estimate.median,
            f"low_{measure.name}": None if interval is None else interval.low,
            f"high_{measure.name}": None if interval is None else interval.high,
            f"repeat_low_{measure.name}": None if repeat is None else repeat.low,
            f"repeat_high_{measure.name}": None if repeat is None else repeat.high,
        }
    for name in PREDICTED:
        predicted = summary.predicted(name)
        row |= {
            f"predicted_{name}": None if predicted is None else predicted.value,
            f"predicted_low_{name}": None if predicted is None else predicted.low,
            f"predicted_high_{name}": None if predicted is None else predicted.high,
            f"error_{name}": summary.error(name),
        }
    row["predicted_binds"] = None if summary.prediction is None else summary.prediction.binds
    return row


def _names(rows: Sequence[Row]) -> list[str]:
    """Of all rows: some have parts that others have not."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _parquet(rows: Sequence[Row]) -> bytes:
    names = _names(rows)
    columns = {name: pa.array([row.get(name) for row in rows], type=_type(name)) for name in names}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


TEXTS = (
    *("cell", "label", "hosts_json", "serve_json", "model", "dtype", "where", "transport", "wire_dtype"),
    *("combine", "skew_how", "fault", "plan", "load_tool", "load_trace", "load_trace_format", "started_at"),
    *("failed", "tokens_sha", "errors_json", "predicted_binds", "lengths", "notes"),
)
WHOLE = (
    *("layers", "workers", "replicas", "fault_worker", "concurrency", "prompt_tokens", "output_tokens"),
    *("round", "seed"),
)


def _type(name: str) -> Any:
    """By the name, not by the values: a column without a value has the type that it has elsewhere."""
    if name in TEXTS:
        return pa.string()
    if name in WHOLE or name.startswith("num_"):
        return pa.int64()
    if name == "loads_LE":
        return pa.list_(pa.list_(pa.int64()))
    return pa.list_(pa.int64()) if name == "tokens_per_tenth_s" else pa.float64()


def _csv(rows: Sequence[Row]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    names = _names(rows)
    writer.writerow(names)
    for row in rows:
        writer.writerow([_field(row.get(name)) for name in names])
    return out.getvalue().encode()


def _field(value: Any) -> Any:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else value
