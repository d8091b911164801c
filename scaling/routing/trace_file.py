"""A routing trace as a whole: how often each expert was chosen, and some of its rows.

Shapes: T tokens, R rows, L MoE layers, E experts, K experts per token.
"""

import numpy as np

from coordinator.engine.recording.trace_format import ABSENT
from coordinator.engine.recording.trace_reader import TraceReader
from moe_model.errors import ConfigError


class TraceFile(TraceReader):
    """Read in blocks: what is kept is small, whatever the file's size. All methods raise ConfigError."""

    def counts(self) -> np.ndarray:
        """How many rows each expert got: counts_LE, int64; E may be more than the header's, where experts
        were added."""
        counts_LE = np.zeros((len(self.header.moe_layers), self.header.num_experts), dtype=np.int64)
        for ids_TLK in self.rows():
            num_experts = max(counts_LE.shape[1], 1 + highest(ids_TLK))
            counts_LE = np.pad(counts_LE, ((0, 0), (0, num_experts - counts_LE.shape[1])))
            counts_LE += count_rows(ids_TLK, num_experts)
        return counts_LE

    def shares(self) -> list[list[float]]:
        """Shares of a layer's rows: shares_LE. Raises also where there are no rows."""
        counts_LE = self.counts()
        if not counts_LE.sum():
            raise self._empty()
        shares: list[list[float]] = (counts_LE / counts_LE.sum(1, keepdims=True).clip(min=1)).tolist()
        return shares

    def some_rows(self, num_rows: int) -> np.ndarray:
        """ids_RLK, uint16, of at most so many tokens, spread over the whole file, the same ones each time;
        the number of experts where a token has fewer. Raises also where there are no rows."""
        rng = np.random.default_rng(0)
        lots_R, kept_RLK = np.empty(0), np.empty((0, len(self.header.moe_layers), 1), dtype=np.uint16)
        for ids_TLK in self.rows():
            # Each token draws a lot; those with the lowest are kept.
            lots_R = np.concatenate([lots_R, rng.random(len(ids_TLK))])
            top_k = max(kept_RLK.shape[2], ids_TLK.shape[2])
            kept_RLK = np.concatenate([_widened(kept_RLK, top_k), _widened(ids_TLK, top_k)])
            if len(lots_R) > num_rows:
                lowest = np.argpartition(lots_R, num_rows)[:num_rows]
                lots_R, kept_RLK = lots_R[lowest], kept_RLK[lowest]
        if not len(kept_RLK):
            raise self._empty()
        num_experts = max(self.header.num_experts, 1 + highest(kept_RLK))
        return np.where(kept_RLK == ABSENT, np.uint16(num_experts), kept_RLK)

    def _empty(self) -> ConfigError:
        return ConfigError(f"{self.path}: has no rows: no request was served while it was recorded")


def highest(ids_TLK: np.ndarray) -> int:
    """The highest id, -1 where there is none."""
    known = ids_TLK[ids_TLK != ABSENT]
    return int(known.max()) if known.size else -1


def count_rows(ids_TLK: np.ndarray, num_experts: int) -> np.ndarray:
    """counts_LE, int64; absent ones do not count."""
    num_layers = ids_TLK.shape[1]
    # One more column, for absent ones.
    columns_TLK = np.minimum(ids_TLK, num_experts).astype(np.int64)
    columns_TLK += np.arange(num_layers)[None, :, None] * (num_experts + 1)
    counts = np.bincount(columns_TLK.ravel(), minlength=num_layers * (num_experts + 1))
    return counts.reshape(num_layers, num_experts + 1)[:, :num_experts]


def _widened(ids_TLK: np.ndarray, top_k: int) -> np.ndarray:
    missing = top_k - ids_TLK.shape[2]
    return np.pad(ids_TLK, ((0, 0), (0, 0), (0, missing)), constant_values=ABSENT)
