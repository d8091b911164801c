"""Predictions against measurements: by how much they missed, and whether that is within the bounds."""

from collections.abc import Callable, Sequence
from statistics import median

from scaling.results.summary import CellSummary, summarise
from scaling.store import Results

# Each bound of a manifest: the measure, what is taken of its cells' misses, and what that is called.
BOUNDS: dict[str, tuple[str, Callable[[Sequence[float]], float], str]] = {
    "throughput_median": ("tokens_per_s", median, "the median error of throughput"),
    "throughput_worst": ("tokens_per_s", max, "the worst error of throughput"),
    "gap_median": ("gap_ms", median, "the median error of the median gap between tokens"),
    "gap_worst": ("gap_ms", max, "the worst error of the median gap between tokens"),
    "first_token_median": ("first_token_ms", median, "the median error of the time to the first token"),
    "first_token_worst": ("first_token_ms", max, "the worst error of the time to the first token"),
}


def misses(results: Results) -> list[str]:
    """Where predictions missed by more than the manifest's bounds, a sentence each; empty: nowhere."""
    return misses_of(results.manifest.bounds, summarise(results))


def misses_of(bounds: dict[str, float], summaries: Sequence[CellSummary]) -> list[str]:
    """A bound that nothing is known of is a miss, and so is one of predictions that no cell was measured for:
    a bound must not hold because of a misspelt word."""
    found = []
    for name, bound in sorted(bounds.items()):
        if name not in BOUNDS:
            found.append(f"bound {name!r}: not known; there are {', '.join(BOUNDS)}")
            continue
        measure, take, what = BOUNDS[name]
        errors = {
            s: abs(error) for s in range(len(summaries)) if (error := summaries[s].error(measure)) is not None
        }
        if not errors:
            if any(summary.prediction is not None for summary in summaries):
                found.append(f"bound {name!r}: no cell has both a prediction and a measurement")
            continue
        value = take(list(errors.values()))
        if value > bound:
            found.append(_sentence(what, value, bound, [(summaries[s], e) for s, e in errors.items()]))
    return found


def _sentence(what: str, value: float, bound: float, errors: Sequence[tuple[CellSummary, float]]) -> str:
    worst, error = max(errors, key=lambda each: each[1])
    return (
        f"{what} of {len(errors)} cells is {100 * value:.1f} %, its bound is {100 * bound:g} %; "
        f"the farthest is {worst.key} ({worst.cell.label}), {100 * error:.1f} %"
    )
