"""Rates of experts of one size on the host that this runs on, under its quota, as `expertmesh probe` has
them: `host_rates.py WIDTH HIDDEN`. A piece of the measurement is longer than some periods of the quota."""

import sys

import msgspec

from scaling.machines import ProductRate
from scaling.probe.kernels import Plan, measure_rates

_ROWS = (1, 2, 4, 8, 16, 32)


def measured(width: int, hidden: int) -> tuple[ProductRate, ...]:
    plan = Plan(
        forms=("float32",),
        rows=_ROWS,
        linears=(),
        experts=((width, hidden),),
        one_thread=(),
        budget_s=0.3,
        cold_bytes=128 << 20,
    )
    return measure_rates(plan, 1, lambda _: None)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measured(*map(int, sys.argv[1:]))))
