"""Overheads of steps by least squares of relative errors, none of them below zero.

A step's seconds are a sum: a fixed part, one of each layer, of each row, of each row's values in each layer,
of each logit that a token is drawn of, of attention's values, and its products times a factor.
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

# The unit of each term, in seconds.
TERMS = {
    "step_us": 1e-6,
    "layer_us": 1e-6,
    "row_us": 1e-6,
    "value_ns": 1e-9,
    "draw_ns": 1e-9,
    "attention_value_ns": 1e-9,
    "kernels": 1.0,
}


def fitted(machine: Machine, shapes: dict[str, Shape], measured: Sequence[Measured]) -> Machine:
    """The machine with the overheads of these steps, which no workers took part in; what else it has stays.
    `shapes` by the models' names."""
    plain = msgspec.structs.replace(machine, overheads=Overheads(experts_us=machine.overheads.experts_us))
    rows = np.array([_mean_terms(plain, shapes[each.model], each) for each in measured])
    seconds = np.array([each.seconds for each in measured])
    # One of each row is its own share of a second's error.
    found, _ = nnls(rows / seconds[:, None], np.ones(len(seconds)))
    terms = dict(zip(TERMS, map(float, found), strict=True))
    terms["kernels"] = max(terms["kernels"], 1e-3)
    return msgspec.structs.replace(machine, overheads=msgspec.structs.replace(machine.overheads, **terms))


def _mean_terms(plain: Machine, shape: Shape, each: Measured) -> NDArray[np.float64]:
    costs = ModelCosts.of(plain, shape, form="bfloat16")
    found = np.mean([_terms(costs, shape, work) for work in each.works], axis=0)
    return np.asarray(found, np.float64)


def _terms(costs: ModelCosts, shape: Shape, work: StepWork) -> list[float]:
    """Seconds of each of TERMS, where its coefficient is 1."""
    layers = shape.n_layers
    amounts = {
        "step_us": 1,
        "layer_us": layers,
        "row_us": work.num_rows,
        "value_ns": work.num_rows * layers * shape.d_model,
        "draw_ns": work.num_drawn * shape.vocab_size,
        "attention_value_ns": layers * work.positions * shape.attention_values,
        "kernels": products_seconds(costs, shape, work),
    }
    return [TERMS[name] * amounts[name] for name in TERMS]


def products_seconds(costs: ModelCosts, shape: Shape, work: StepWork) -> float:
    """Of all matrices of a step, experts included."""
    shared = sum(costs.shared_layer(layer, work.num_rows, 0) for layer in range(shape.n_layers))
    return shared + sum(map(costs.experts, work.rows_LE)) + costs.head(work.num_drawn)


def explained(machine: Machine, shape: Shape, each: Measured) -> float:
    """Seconds of a step, by the machine's costs alone; without what workers' calls take."""
    costs = ModelCosts.of(machine, shape, form="bfloat16")
    return float(np.mean([step_seconds(costs, shape, work) for work in each.works]))


def step_seconds(costs: ModelCosts, shape: Shape, work: StepWork) -> float:
    layers = shape.n_layers
    positions = work.positions
    shared = sum(costs.shared_layer(layer, work.num_rows, positions) for layer in range(layers))
    experts = sum(map(costs.experts, work.rows_LE))
    return costs.step(work.num_rows, work.num_drawn) + shared + experts + costs.head(work.num_drawn)


def residuals(
    machine: Machine, shapes: dict[str, Shape], measured: Sequence[Measured]
) -> tuple[FittedStep, ...]:
    return tuple(
        FittedStep(
            *(each.model, each.phase, each.batch, each.workers, 1e3 * each.seconds),
            1e3 * explained(machine, shapes[each.model], each),
        )
        for each in measured
    )
