"""A sweep's end: medians beside predictions, and what of it is not as it should be."""

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from scaling.cell import Cell
from scaling.observation import Observation
from scaling.prediction import Prediction
from scaling.store import Results

_NUM_DRAWS = 2000


class Row(Struct, frozen=True):
    """Of one cell: tokens a second, their median over rounds with the interval of a bootstrap, and the median
    gap in milliseconds. `error`: of the prediction, as a share of what was measured."""

    key: str
    label: str
    num: int
    rate: tuple[float, float, float] | None
    gap_ms: float | None
    predicted: float | None
    error: float | None
    gap_error: float | None


def rows(results: Results, keys: Iterable[str]) -> list[Row]:
    """In the order of the keys."""
    by_cell = results.of()
    return [_row(results.manifest.cells[key], by_cell[key], results.predictions.get(key)) for key in keys]


def _row(cell: Cell, found: Sequence[Observation], prediction: Prediction | None) -> Row:
    rate = median_interval([each.tokens_per_s for each in found])
    gaps = [each.gap_ms.median for each in found if each.gap_ms is not None]
    gap = statistics.median(gaps) if gaps else None
    predicted = None if prediction is None else prediction.tokens_per_s.value
    return Row(
        key=cell.key,
        label=cell.label,
        num=len(found),
        rate=rate,
        gap_ms=gap,
        predicted=predicted,
        error=None if rate is None or predicted is None else predicted / rate[0] - 1,
        gap_error=None if not gap or prediction is None else prediction.gap_ms.value / gap - 1,
    )


def median_interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float, float] | None:
    """(median, low, high) by the percentiles of a bootstrap of fixed seed; None of no values."""
    if not values:
        return None
    rng = random.Random(0)
    drawn = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(_NUM_DRAWS))
    low = drawn[int((1 - share) / 2 * _NUM_DRAWS)]
    high = drawn[min(_NUM_DRAWS - 1, int((1 + share) / 2 * _NUM_DRAWS))]
    return statistics.median(values), low, high


def misses(found: Sequence[Row], bounds: Mapping[str, float]) -> list[str]:
    """A sentence for each bound that predictions miss. Where there are bounds and nothing was predicted, that
    is a miss as well."""
    if not bounds:
        return []
    errors = [abs(row.error) for row in found if row.error is not None]
    gaps = [abs(row.gap_error) for row in found if row.gap_error is not None]
    if not errors:
        return ["there are bounds of predictions, and no cell has both a prediction and a result"]
    values = {
        "throughput_median": ("the median error of throughput", statistics.median(errors)),
        "throughput_worst": ("the worst error of throughput", max(errors)),
        "gap_median": ("the median error of the gap", statistics.median(gaps) if gaps else None),
    }
    return [
        f"{name} is {100 * value:.1f} %, its bound {100 * bounds[key]:.1f} %"
        for key, (name, value) in values.items()
        if key in bounds and value is not None and value > bounds[key]
    ]


def different_tokens(results: Results) -> list[str]:
    """A sentence for each load whose tokens differ between cells that must agree: the same model in float32,
    wherever and however it ran."""
    cells = results.manifest.cells
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for each in results.observations:
        cell = cells.get(each.cell)
        if cell is None or each.failed or each.num_failed or not each.tokens_sha:
            continue
        if cell.dtype != "float32" or cell.wire_dtype != "float32" or cell.combine != "exact" or cell.serve:
            continue
        same = (cell.model, str(cell.layers), str(cell.load), str(cell.skew), str(each.seed))
        found.setdefault(same, {}).setdefault(each.tokens_sha, cell.label)
    return [
        f"the same requests gave other tokens: {' | '.join(labels.values())}"
        for labels in found.values()
        if len(labels) > 1
    ]
