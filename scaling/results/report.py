"""The report: one HTML file that opens without a network, from what a folder of results has."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from scaling.results.figures import (
    experts,
    faults,
    latency,
    network,
    predictions,
    resources,
    split,
    workers,
)
from scaling.results.figures.view import Part, View, view_of
from scaling.results.html import Field, escape, number, table
from scaling.results.intro import intro
from scaling.results.measures import MEASURES
from scaling.results.page import page
from scaling.results.summary import CellSummary, Estimate, summarise
from scaling.store import Results, write_whole

REPORT = "report.html"
# In the order in which they stand.
FIGURES: tuple[Callable[[View], Part | None], ...] = (
    *(predictions.part, workers.part, network.part, latency.part, split.part, resources.part, experts.part),
    faults.part,
)


def write_report(results: Results) -> Path:
    """Into the results' folder, whole or not at all; also of a sweep that is not finished. Raises OSError."""
    path = results.folder / REPORT
    write_whole(path, report_html(results).encode())
    return path


def report_html(results: Results) -> str:
    summaries = summarise(results)
    view = view_of(results, summaries)
    made = [make(view) for make in FIGURES]
    made += [_cells(view) if view.summaries else None, predictions.cells_part(view)]
    made += [_failures(summaries), _about(results)]
    parts = [part for part in made if part is not None]
    return page(f"{results.manifest.name}: results of a sweep", intro(results, summaries), parts)


def _cells(view: View) -> Part:
    """Every cell that ran, with every measure that any has."""
    named = [m for m in MEASURES if any(m.name in summary.estimates for summary in view.summaries)]
    head = ["cell", "rounds", *(f"{m.title}, {m.unit}" if m.unit else m.title for m in named)]
    rows = []
    for summary in view.summaries:
        fields = [_estimate(summary.estimates.get(measure.name), measure.unit) for measure in named]
        rows.append([Field(view.words(summary), hint=summary.key), number(summary.num_rounds), *fields])
    reading = (
        "Medians over the rounds; in brackets, where the median of another run is expected. The pointer over "
        "a number shows its intervals. summary.csv has all of it."
    )
    return Part("Cells", reading, table(head, rows))


def _estimate(estimate: Estimate | None, unit: str) -> Field:
    if estimate is None:
        return Field("")
    field, hints = number(estimate.median), []
    if estimate.interval is not None:
        low, high = number(estimate.interval.low).text, number(estimate.interval.high).text
        hints.append(f"median of {estimate.num} rounds, 95 %: {low} to {high}")
    text = field.text
    if estimate.repeat is not None:
        low, high = number(estimate.repeat.low).text, number(estimate.repeat.high).text
        hints.append(f"another run: {low} to {high}")
        text += f" ({low}–{high})" if unit == "tokens/s" else ""
    return Field(text, field.value, "; ".join(hints))


def _failures(summaries: Sequence[CellSummary]) -> Part | None:
    rows = [
        [Field(summary.cell.label, hint=summary.key), number(of), Field(reason)]
        for summary in summaries
        for of, reason in sorted(summary.failures.items())
    ]
    if not rows:
        return None
    reading = "These runs have no figures. The sweep went on without them; --resume runs them again."
    return Part("What failed", reading, table(("cell", "round", "reason"), rows))


def _about(results: Results) -> Part:
    manifest = results.manifest
    told = {"machine": manifest.machine, "experiment": manifest.experiment, "bounds": manifest.bounds}
    blocks = "".join(
        f"<details><summary>{name}</summary><pre>{escape(_json(value))}</pre></details>"
        for name, value in told.items()
        if value
    )
    reading = (
        "What manifest.json says of the machine and of the experiment; docs/report.md says how figures "
        "are made."
    )
    return Part("Machine and experiment", reading, blocks)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
