"""float32 products of a few rows: x Wᵀ, (W xᵀ)ᵀ and packed for oneDNN. python -m benchmarks.few_rows

Each product has new weights, 24 in turn, so that they come from memory and not from a cache.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import add_out_argument, reporting

SHAPE_OI = (2048, 512)
NUM_WEIGHTS = 24


def microseconds(product: Callable[[], Tensor], repeats: int = 15) -> float:
    """Median over `repeats` of the mean of one turn through all weights."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(NUM_WEIGHTS):
            product()
        times.append(1e6 * (time.perf_counter() - started) / NUM_WEIGHTS)
    return statistics.median(times)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="float32 products of a few rows, three ways.")
    add_out_argument(parser)
    args = parser.parse_args(argv)
    with reporting("few_rows", args.out, argv) as report:
        report.finish({"shape": SHAPE_OI, "microseconds": measure_all()})


def measure_all() -> list[dict[str, float]]:
    weights = [torch.randn(SHAPE_OI) for _ in range(NUM_WEIGHTS)]
    plain = cycle(weights)
    packed = cycle([torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights])
    rows = []
    print(f"{'rows':>5} {'x W^T':>8} {'(W x^T)^T':>10} {'packed':>8}   microseconds, {SHAPE_OI} float32")
    for num_rows in (1, 2, 4, 8, 16, 32):
        x_RI = torch.randn(num_rows, SHAPE_OI[1])
        pair_RI = x_RI.repeat(2, 1) if num_rows == 1 else x_RI
        products = (
            lambda: F.linear(x_RI, next(plain)),  # noqa: B023 - used up within the turn of the loop
            lambda: (next(plain) @ pair_RI.t()).t().contiguous(),  # noqa: B023
            lambda: torch.ops.mkldnn._linear_pointwise(x_RI, next(packed), None, "none", [], "none"),  # noqa: B023
        )
        times = [microseconds(product) for product in products]
        rows.append({"rows": num_rows, "plain": times[0], "transposed": times[1], "packed": times[2]})
        print(f"{num_rows:>5} {times[0]:>8.0f} {times[1]:>10.0f} {times[2]:>8.0f}", flush=True)
    return rows


if __name__ == "__main__":
    main()
