"""Rounding of a float32 product, plain and packed for oneDNN, against float64: why float32 is not packed.

python -m benchmarks.linear_error
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks.report import add_out_argument, reporting

SHAPES = ((512, 1536), (512, 2048), (2048, 512), (512, 16384))
NUM_ROWS = 64


def measure(num_in: int, num_out: int) -> tuple[float, float]:
    """Largest error of the plain and of the packed product, in units of the result's standard deviation."""
    generator = torch.Generator().manual_seed(0)
    x_RI = torch.randn(NUM_ROWS, num_in, generator=generator)
    weight_OI = torch.randn(num_out, num_in, generator=generator)
    exact_RO = x_RI.double() @ weight_OI.double().T
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
    packed_RO = torch.ops.mkldnn._linear_pointwise(x_RI, packed, None, "none", [], "none")
    errors = [
        (y.double() - exact_RO).abs().max() / exact_RO.std() for y in (F.linear(x_RI, weight_OI), packed_RO)
    ]
    return float(errors[0]), float(errors[1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Rounding of a float32 product, plain and packed for oneDNN."
    )
    add_out_argument(parser)
    args = parser.parse_args(argv)
    with reporting("linear_error", args.out, argv) as report:
        report.finish({"rows": measure_all()})


def measure_all() -> list[dict[str, float]]:
    print(f"{'in':>6} {'out':>6} {'plain':>9} {'packed':>9} {'ratio':>6}")
    rows = []
    for num_in, num_out in SHAPES:
        plain, packed = measure(num_in, num_out)
        rows.append({"in": num_in, "out": num_out, "plain": plain, "packed": packed})
        print(f"{num_in:>6} {num_out:>6} {plain:>9.1e} {packed:>9.1e} {packed / plain:>6.1f}")
    return rows


if __name__ == "__main__":
    main()
