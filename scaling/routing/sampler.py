"""Rows of a step drawn as a router would choose: how many each expert of a layer gets.

Shapes: L MoE layers, E experts, K of a row, P rows of a table, R rows of a step.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_model.layers.zipf_choice import draw_rows, inclusion, zipf_inclusion
from scaling.routing.trace_file import TraceFile
from scaling.shape import Shape

# Rows of each layer that are kept to draw from.
NUM_ROWS = 4096


class Sampler:
    """Draws whole rows of K different experts, each row alone, out of a table of rows for each layer. Layers
    are counted among those that have experts, from 0."""

    def __init__(self, ids_LPK: np.ndarray, num_experts: int) -> None:
        """A row may have fewer than K: then the rest is `num_experts`."""
        self._ids_LPK = ids_LPK
        self.num_layers, self.num_rows, self.top_k = ids_LPK.shape
        self.num_experts = num_experts

    @classmethod
    def uniform(cls, shape: Shape) -> "Sampler":
        return cls.of_zipf(shape, 0.0, 0)

    @classmethod
    def of_zipf(cls, shape: Shape, s: float, seed: int) -> "Sampler":
        """As `--force-routing zipf:S:SEED` routes: the same table."""
        n_experts, top_k = shape.n_experts, shape.top_k
        rows = [
            draw_rows(zipf_inclusion(n_experts, top_k, s, layer, seed), NUM_ROWS, layer, seed)
            for layer in shape.moe_layers
        ]
        return cls(np.stack(rows), n_experts)

    @classmethod
    def of_loads(cls, loads_LE: Sequence[Sequence[float]], top_k: int, seed: int) -> "Sampler":
        """Experts as often as their shares say, which of them together by chance."""
        rows = []
        for layer, shares in enumerate(loads_LE):
            shares_E = np.asarray(shares, dtype=np.float64)
            total = shares_E.sum()
            shares_E = shares_E / total if total > 0 else np.full(len(shares_E), 1 / len(shares_E))
            rows.append(draw_rows(inclusion(shares_E, top_k), NUM_ROWS, layer, seed))
        return cls(np.stack(rows), len(loads_LE[0]))

    @classmethod
    def of_trace(cls, path: Path) -> "Sampler":
        """Rows that were recorded: also who is chosen with whom. Raises ConfigError."""
        trace = TraceFile.open(path)
        ids_RLK = trace.some_rows(NUM_ROWS)
        # What is absent is one more.
        num_experts = max(trace.header.num_experts, int(ids_RLK.max()))
        return cls(np.ascontiguousarray(ids_RLK.transpose(1, 0, 2)), num_experts)

    def draw(self, layer: int, num_rows: int, rng: np.random.Generator) -> np.ndarray:
        """rows_E, int64: they add up to K times `num_rows`, where all rows have K experts."""
        counts_E = np.bincount(self.chosen(layer, num_rows, rng).ravel(), minlength=self.num_experts)
        return counts_E[: self.num_experts]

    def chosen(self, layer: int, num_rows: int, rng: np.random.Generator) -> np.ndarray:
        """ids_RK."""
        at_R = rng.integers(self.num_rows, size=num_rows)
        return np.take(self._ids_LPK[layer], at_R, axis=0)
