"""How likely a row of a step is one of each expert, from relative loads (scaling/routing/loads.py).

Shapes: L layers with experts, E experts of each, K chosen of them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_model.errors import ConfigError
from scaling.shape import Shape

Floats = NDArray[np.float64]


def even_loads(shape: Shape) -> list[list[float]]:
    """L x E: every expert alike."""
    return [[1 / shape.n_experts] * shape.n_experts for _ in shape.moe_layers]


def chances(loads_LE: Sequence[Sequence[float]], shape: Shape) -> Floats:
    """[L, E], of a row, to be one of each expert: K in each layer, none more than 1, as a row never takes an
    expert twice. `loads_LE` are relative; a layer of which nothing is known is even. Raises ConfigError."""
    num_layers, num_experts, top_k = len(shape.moe_layers), shape.n_experts, shape.top_k
    if len(loads_LE) != num_layers or any(len(loads_E) != num_experts for loads_E in loads_LE):
        found = f"{len(loads_LE)} layers of {len(loads_LE[0]) if loads_LE else 0} experts"
        raise ConfigError(f"loads: {found}, the model has {num_layers} of {num_experts}")
    loads = np.array(loads_LE, np.float64)
    if not np.isfinite(loads).all() or (loads < 0).any():
        raise ConfigError("loads: not all are numbers >= 0")
    return np.array([_of_layer(loads_E, min(top_k, num_experts)) for loads_E in loads])


def _of_layer(loads_E: Floats, top_k: int) -> Floats:
    """What is above 1 goes to the others, in proportion, until none is."""
    if not loads_E.sum() > 0:
        return np.full(len(loads_E), top_k / len(loads_E))
    # Experts that nothing asked for are not impossible, only rare.
    weights_E = np.maximum(loads_E / loads_E.sum(), 1e-9)
    chance_E = np.zeros(len(loads_E))
    is_full_E = np.zeros(len(loads_E), bool)
    while True:
        free = ~is_full_E
        left = top_k - is_full_E.sum()
        chance_E[free] = left * weights_E[free] / weights_E[free].sum() if free.any() else 0
        over = free & (chance_E >= 1)
        if not over.any():
            return chance_E
        chance_E[over], is_full_E = 1, is_full_E | over
