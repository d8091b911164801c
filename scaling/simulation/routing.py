"""How many rows of a step each expert of a layer gets: draws without putting back, K of E for each row.

Shapes: T rows, E experts, K chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from scaling.routing.sampler import Sampler
from scaling.shape import Shape

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Up to so many (row, expert) pairs each row is drawn by itself.
_MOST_KEYS = 1 << 15


class Draws(Protocol):
    """Where rows go."""

    def draw(self, layer: int, num_rows: int, n_experts: int, top_k: int, rng: np.random.Generator) -> Ints:
        """Rows of each expert of a layer, K·T in all and no expert more than T. `layer` counts all layers."""


@dataclass(frozen=True, slots=True)
class Even:
    """Every expert alike."""

    def draw(self, layer: int, num_rows: int, n_experts: int, top_k: int, rng: np.random.Generator) -> Ints:
        return draw_shares(np.full(n_experts, 1.0 / n_experts), num_rows, top_k, rng)


EVEN = Even()


def draw_shares(shares_E: Floats, num_rows: int, top_k: int, rng: np.random.Generator) -> Ints:
    """K different experts for each row, one after the other by their shares: the K least of exponential
    variables with these rates (Efraimidis, Spirakis: Weighted random sampling with a reservoir, 2006).

    Of very many rows only the first so many are drawn, and their counts scaled up: these hardly vary.
    """
    n_experts = len(shares_E)
    if top_k >= n_experts:
        return np.full(n_experts, num_rows)
    most = max(16, _MOST_KEYS // n_experts)
    num_drawn = min(num_rows, most)
    keys_TE = rng.standard_exponential((num_drawn, n_experts)) / np.maximum(shares_E, 1e-30)
    chosen_TK = np.argpartition(keys_TE, top_k - 1, axis=1)[:, :top_k]
    counts_E: Ints = np.bincount(chosen_TK.ravel(), minlength=n_experts)
    return counts_E if num_drawn == num_rows else _scaled(counts_E, num_rows, num_drawn, top_k)


def _scaled(counts_E: Ints, num_rows: int, num_drawn: int, top_k: int) -> Ints:
    """To K·T in all, none above T: rounded down, and the largest parts up."""
    exact_E = np.minimum(counts_E * (num_rows / num_drawn), num_rows)
    whole_E: Ints = np.floor(exact_E).astype(np.int64)
    missing = num_rows * top_k - int(whole_E.sum())
    order = np.argsort(whole_E - exact_E, kind="stable")
    for expert in [*order, *order][: max(0, missing)]:
        if whole_E[expert] < num_rows:
            whole_E[expert] += 1
    return whole_E


class Sampled:
    """Rows as a sampler of `scaling.routing` draws them, which counts only layers with experts."""

    def __init__(self, sampler: Sampler, moe_layers: Sequence[int]) -> None:
        self._sampler = sampler
        self._number = {layer: number for number, layer in enumerate(moe_layers)}

    def draw(self, layer: int, num_rows: int, n_experts: int, top_k: int, rng: np.random.Generator) -> Ints:
        return self._sampler.draw(self._number[layer], num_rows, rng)


def traced(path: Path, config: ModelConfig) -> Draws:
    """By a recorded trace: how often, and with whom. Raises ConfigError; also where it is another model's."""
    sampler = Sampler.of_trace(path)
    said = sampler.num_layers, sampler.num_experts, sampler.top_k
    wanted = len(config.moe_layers), config.n_experts, config.top_k
    if said != wanted:
        raise ConfigError(f"{path}: layers with experts, experts, chosen: {said}, the model has {wanted}")
    return Sampled(sampler, config.moe_layers)


def forced(shape: Shape, s: float, seed: int) -> Draws:
    """As `serve --force-routing zipf:S:SEED` routes: the same table."""
    return Sampled(Sampler.of_zipf(shape, s, seed), shape.moe_layers)
