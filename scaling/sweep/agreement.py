"""Whether cells that must give the same tokens did."""

from scaling.cell import Cell
from scaling.observation import Observation
from scaling.store import Results


def different_tokens(results: Results) -> list[str]:
    """A sentence for each load whose tokens differ between cells that must agree: the same model in float32
    with the same requests, wherever and with however many workers it ran, and whatever was done to them."""
    cells = results.manifest.cells
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for each in results.observations:
        cell = cells.get(each.cell)
        if cell is not None and _is_exact(cell) and _is_whole(each):
            same = (cell.model, str(cell.layers), str(cell.load), str(cell.skew), str(each.seed))
            found.setdefault(same, {}).setdefault(each.tokens_sha, f"{cell.label} ({cell.key})")
    return [
        f"the same requests gave other tokens: {' | '.join(labels.values())}"
        for labels in found.values()
        if len(labels) > 1
    ]


def _is_exact(cell: Cell) -> bool:
    """Where nothing is rounded, and no option of `serve` says otherwise."""
    return cell.dtype == cell.wire_dtype == "float32" and cell.combine == "exact" and not cell.serve


def _is_whole(observation: Observation) -> bool:
    return not observation.failed and not observation.num_failed and bool(observation.tokens_sha)
