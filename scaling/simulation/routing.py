"""How many rows of a step each expert of a layer gets: draws without putting back, K of E for each row.

Shapes: T rows, E experts, K chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Up to so many (row, expert) pairs each row is drawn by itself.
_MOST_KEYS = 1 << 15


class Draws(Protocol):
    """Where rows go."""

    def draw(
        self, layer: int, num_rows: int, n_experts: int, top_k: int, rng: np.random.Generator
    ) -> Ints:
        """Rows of each expert of a layer, K·T in all and no expert more than T. `layer` counts all layers."""


@dataclass(frozen=True, slots=True)
class Even:
    """Every expert alike."""

    def draw(self, layer: int, num_rows: int, n_experts: int, top_k: int, rng: np.random.Generator) -> Ints:
        return draw_shares(np.full(n_experts, 1.0 / n_experts), num_rows, top_k, rng)


@dataclass(frozen=True, slots=True)
class Zipf:
    """The r-th most wanted expert of a layer has a share of 1/r^s, in an order by seed and layer."""

    s: float
    seed: int = 0

    def draw(self, layer: int, num_rows: int, n_experts: int, top_k: int, rng: np.random.Generator) -> Ints:
        return draw_shares(_zipf_shares(self.s, self.seed, layer, n_experts), num_rows, top_k, rng)


class Shares:
    """By the shares of each layer's experts, as a trace or the metrics of a server have them."""

    def __init__(self, shares: dict[int, Sequence[float]]) -> None:
        self._shares = {layer: np.asarray(row, float) / max(sum(row), 1e-30) for layer, row in shares.items()}

    def draw(self, layer: int, num_rows: int, n_experts: int, top_k: int, rng: np.random.Generator) -> Ints:
        known = self._shares.get(layer)
        shares_E = np.full(n_experts, 1.0 / n_experts) if known is None else known
        return draw_shares(shares_E, num_rows, top_k, rng)


@cache
def _zipf_shares(s: float, seed: int, layer: int, n_experts: int) -> Floats:
    shares_E = np.arange(1, n_experts + 1, dtype=float) ** -s
    shares_E /= shares_E.sum()
    found: Floats = np.random.default_rng((seed, layer)).permutation(shares_E)
    return found


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


def traced(path: Path, config: ModelConfig) -> Draws:
    """By the shares of a recorded trace. Raises ConfigError."""
    raise ConfigError(f"{path}: traces are not read yet for {config.family}")
