"""Overheads that are known are found again, also where some steps were disturbed."""

from random import Random

import msgspec
import numpy as np
import pytest

from scaling.machines import Machine, Overheads, ProductRate
from scaling.probe.fit import explained, fitted, fitted_steps, robust, split, with_calls
from scaling.probe.models import CALIBRATION
from scaling.probe.steps import Measured, StepWork
from scaling.shape import Shape, shape_of_config

SHAPES = {name: shape_of_config(config, name) for name, config in CALIBRATION.items()}
# So high a roofline that it binds nowhere.
MACHINE = Machine(
    *("m0", 2, 8, 1e6, 1e6),
    rates=tuple(
        ProductRate("bfloat16", rows, 80, 10 / rows**0.5, kind="expert", matrix_kb=kb)
        for rows in (1, 16, 256)
        for kb in (256, 4096)
    ),
)
TRUE = Overheads(
    step_us=150, layer_us=25, row_us=3, value_ns=0.8, draw_ns=0.5, attention_value_ns=0.2, kernels=1.2
)


def work(shape: Shape, rows: int, drawn: int, context: int) -> StepWork:
    touched = min(shape.n_experts, rows * shape.top_k)
    of_layer = (max(1, rows * shape.top_k // touched),) * touched
    return StepWork(rows, drawn, rows * context, (of_layer,) * len(shape.moe_layers))


def measured(machine: Machine, noise: Random | None = None) -> list[Measured]:
    found = []
    for name, shape in SHAPES.items():
        for batch in (1, 4, 8, 16, 32):
            for context in (20, 200):
                each = Measured(name, "decode", batch, 0, (work(shape, batch, batch, context),), 1.0)
                found.append(each)
            found.append(Measured(name, "prefill", batch, 0, (work(shape, 16 * batch, batch, 8),), 1.0))
    scales = [3.0 if noise is not None and noise.random() < 0.1 else 1.0 for _ in found]
    return [
        msgspec.structs.replace(each, seconds=scale * explained(machine, SHAPES[each.model], each))
        for each, scale in zip(found, scales, strict=True)
    ]


def test_what_steps_are_made_of_is_found() -> None:
    true = msgspec.structs.replace(MACHINE, overheads=TRUE)
    found = fitted(MACHINE, SHAPES, measured(true))
    for name in ("step_us", "layer_us", "row_us", "value_ns", "draw_ns", "attention_value_ns", "kernels"):
        assert getattr(found.overheads, name) == pytest.approx(getattr(TRUE, name), rel=0.02), name
    assert max(abs(each.error) for each in fitted_steps(found, SHAPES, measured(true))) < 0.01


def test_weights_that_the_cache_keeps_are_told_apart() -> None:
    machine = msgspec.structs.replace(MACHINE, cache_mb=64.0)
    true = msgspec.structs.replace(machine, overheads=msgspec.structs.replace(TRUE, cached=0.4))
    found = fitted(machine, SHAPES, measured(true)).overheads
    assert (found.kernels, found.cached) == pytest.approx((1.2, 0.4), rel=0.05)


def test_steps_that_were_disturbed_count_little() -> None:
    """One in ten took three times as long."""
    true = msgspec.structs.replace(MACHINE, overheads=TRUE)
    found = fitted(MACHINE, SHAPES, measured(true, Random(1)))
    assert max(abs(each.error) for each in fitted_steps(found, SHAPES, measured(true))) < 0.05


def test_no_term_is_below_zero() -> None:
    rows = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert min(robust(rows, np.array([3.0, 2.0, 1.0]))) >= 0


def test_what_calls_cost_is_found() -> None:
    name, shape = "modularforge", SHAPES["modularforge"]
    true = msgspec.structs.replace(
        MACHINE, overheads=msgspec.structs.replace(TRUE, call_us=60, worker_us=90, byte_ns=0.7)
    )
    alone, remote = [], []
    for batch in (1, 8, 32):
        each = Measured(name, "decode", batch, 0, (work(shape, batch, batch, 20),), 1.0)
        alone.append(msgspec.structs.replace(each, seconds=explained(true, shape, each)))
        for workers in (1, 2):
            far = msgspec.structs.replace(
                each, workers=workers, bytes_out=2048.0 * batch * workers, bytes_back=2048.0 * batch * workers
            )
            remote.append(msgspec.structs.replace(far, seconds=explained(true, shape, far)))
    found = with_calls(msgspec.structs.replace(MACHINE, overheads=TRUE), shape, alone, remote).overheads
    assert found.call_us == pytest.approx(60, rel=0.01)
    assert found.worker_us == pytest.approx(90, rel=0.01)
    assert found.byte_ns == pytest.approx(0.7, rel=0.01)
    assert split(true, shape, remote[0])["calls"] > split(true, shape, alone[0]).get("calls", 0.0)
