"""Overheads of steps by least squares of relative errors, none of them below zero.

A step's seconds are a sum: a fixed part, one of each layer, of each row, of each row's values in each layer,
of each logit that a token is drawn of, of attention's values, and its products times a factor: one where
weights come from memory, another where the last cache still has them.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from scaling.costs.model_costs import ModelCosts
from scaling.machines import FittedStep, Machine, Overheads
from scaling.probe.steps import Measured, StepWork
from scaling.shape import Shape

# Errors up to here count by their squares.
_SMALL_ERROR = 0.03
# The unit of each term, in seconds.
TERMS = {
    "step_us": 1e-6,
    "layer_us": 1e-6,
    "row_us": 1e-6,
    "value_ns": 1e-9,
    "draw_ns": 1e-9,
    "attention_value_ns": 1e-9,
    "kernels": 1.0,
    "cached": 1.0,
}


def fitted(machine: Machine, shapes: dict[str, Shape], measured: Sequence[Measured]) -> Machine:
    """The machine with the overheads of these steps, which no workers took part in; what else it has stays.
    `shapes` by the models' names."""
    plain = msgspec.structs.replace(machine, overheads=Overheads(experts_us=machine.overheads.experts_us))
    rows = np.array([_mean_terms(plain, shapes[each.model], each) for each in measured])
    seconds = np.array([each.seconds for each in measured])
    terms = dict(zip(TERMS, robust(rows, seconds), strict=True))
    # A factor that no step says anything of stays.
    for name, column in (("kernels", rows[:, -2]), ("cached", rows[:, -1])):
        terms[name] = max(terms[name], 1e-3) if column.any() else 1.0
    return msgspec.structs.replace(machine, overheads=msgspec.structs.replace(machine.overheads, **terms))


def robust(rows: NDArray[np.float64], seconds: NDArray[np.float64]) -> list[float]:
    """Coefficients, none below zero, of the least sum of relative errors: squares count less and less of
    what other work of the machine has disturbed (iteratively reweighted least squares)."""
    relative = rows / seconds[:, None]
    weights = np.ones(len(seconds))
    found = np.zeros(rows.shape[1])
    for _ in range(20):
        found, _ = nnls(relative * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(relative @ found - 1), _SMALL_ERROR))
    return [float(each) for each in found]


def _mean_terms(plain: Machine, shape: Shape, each: Measured) -> NDArray[np.float64]:
    costs = ModelCosts.of(plain, shape, form="bfloat16")
    found = np.mean([_terms(costs, shape, work) for work in each.works], axis=0)
    return np.asarray(found, np.float64)


def _terms(costs: ModelCosts, shape: Shape, work: StepWork) -> list[float]:
    """Seconds of each of TERMS, where its coefficient is 1."""
    layers, share = shape.n_layers, costs.cached_share
    products = products_seconds(costs, shape, work)
    amounts = {
        "step_us": 1,
        "layer_us": layers,
        "row_us": work.num_rows,
        "value_ns": work.num_rows * layers * shape.d_model,
        "draw_ns": work.num_drawn * shape.vocab_size,
        "attention_value_ns": layers * work.positions * shape.attention_values,
        "kernels": (1 - share) * products,
        "cached": share * products,
    }
    return [TERMS[name] * amounts[name] for name in TERMS]


def products_seconds(costs: ModelCosts, shape: Shape, work: StepWork) -> float:
    """Of all matrices of a step, experts included."""
    shared = sum(costs.shared_layer(layer, work.num_rows, 0, 0) for layer in range(shape.n_layers))
    return shared + sum(map(costs.experts, work.rows_LE)) + costs.head(work.num_drawn)


def explained(machine: Machine, shape: Shape, each: Measured) -> float:
    """Seconds of a step, by the machine's costs alone, with what calls of its workers take."""
    return sum(split(machine, shape, each).values())


def split(machine: Machine, shape: Shape, each: Measured) -> dict[str, float]:
    """Seconds of a mean step by part. Workers are on the engine's machine: together they compute as fast as
    the engine would, each call costs the engine's time one after the other, and workers answer at once."""
    costs = ModelCosts.of(machine, shape, form="bfloat16")
    parts = [_split(costs, shape, work) for work in each.works]
    found = {part: float(np.mean([of[part] for of in parts])) for part in parts[0]}
    workers, layers = each.workers, len(shape.moe_layers)
    if workers:
        out, back = round(each.bytes_out / workers), round(each.bytes_back / workers)
        found["calls"] = layers * (workers * costs.call(out, back) + costs.answer(out, back))
    return found


def _split(costs: ModelCosts, shape: Shape, work: StepWork) -> dict[str, float]:
    rows, layers = work.num_rows, range(shape.n_layers)
    attention = len(layers) * costs.attention(work.positions, work.read)
    return {
        "step": costs.step(rows, work.num_drawn),
        "shared": sum(costs.shared_layer(n, rows, work.positions, work.read) for n in layers) - attention,
        "attention": attention,
        "experts": sum(map(costs.experts, work.rows_LE)),
        "head": costs.head(work.num_drawn),
    }


def fitted_steps(
    machine: Machine, shapes: dict[str, Shape], measured: Sequence[Measured]
) -> tuple[FittedStep, ...]:
    return tuple(
        FittedStep(
            *(each.model, each.phase, each.batch, each.workers, 1e3 * each.seconds),
            1e3 * explained(machine, shapes[each.model], each),
        )
        for each in measured
    )


def with_calls(
    machine: Machine, shape: Shape, alone: Sequence[Measured], remote: Sequence[Measured]
) -> Machine:
    """The machine with what calls to workers cost: of steps with workers, what they take longer than the same
    steps without."""
    without = {_kind(each): each.seconds for each in alone}
    rows, more, seconds = [], [], []
    for each in remote:
        before = without[_kind(each)]
        layers, num_bytes = len(shape.moe_layers), each.bytes_out + each.bytes_back
        both_ends = num_bytes / 2 + num_bytes / (2 * each.workers)
        rows.append([1e-6 * each.workers * layers, 1e-6 * layers, 1e-9 * both_ends * layers])
        more.append(max(0.0, each.seconds - before))
        seconds.append(each.seconds)
    # Errors count as shares of the whole step, not of what is left of it.
    weights = 1 / np.array(seconds)
    found, _ = nnls(np.array(rows) * weights[:, None], np.array(more) * weights)
    names = ("call_us", "worker_us", "byte_ns")
    terms = dict(zip(names, map(float, found), strict=True))
    return msgspec.structs.replace(machine, overheads=msgspec.structs.replace(machine.overheads, **terms))


def _kind(each: Measured) -> tuple[str, int, int, int]:
    """Of a step, whatever its workers. With positions: as many sequences are measured with short prompts and
    with long ones."""
    return each.phase, each.batch, each.works[0].num_rows, each.works[0].positions
