"""Keeps which experts the tokens of a step were routed to, for the requests that want to know.

Shapes: T tokens of the step, L layers, K experts per token.
"""

import numpy as np

from coordinator.engine.core.batch import Batch
from coordinator.engine.core.step import Chunk
from coordinator.engine.core.step_result import ChunkTrace
from coordinator.engine.versions.model_versions import ModelVersions
from moe_model.layers.router import Routing

_ABSENT = -1


def wants_trace(chunk: Chunk) -> bool:
    return chunk.sequence.request.returns.routed_experts


class RoutingTrace:
    """The routing of one step; `observe` is called once per layer."""

    def __init__(self, versions: ModelVersions) -> None:
        self._versions = versions
        self._layers: list[np.ndarray] = []

    def observe(self, layer: int, routing: Routing) -> None:
        columns_TK = routing.expert_ids_TK.cpu().numpy()
        self._layers.append(self._versions.experts_by_column(layer, _ABSENT)[columns_TK])

    def chunks(self, batch: Batch) -> dict[int, ChunkTrace]:
        """By the key of the sequence; what an earlier step has told is left out."""
        traces = {}
        for chunk, first_row in zip(batch.chunks, batch.first_rows, strict=True):
            if wants_trace(chunk):
                traces[chunk.sequence.key] = _untold(chunk, self._ids(chunk, first_row))
        return traces

    def _ids(self, chunk: Chunk, first_row: int) -> np.ndarray:
        """Expert ids, `ids_TLK`, in one byte where all fit. A layer that has fewer experts for the request
        than another has the largest number of the type in the places that are left."""
        most = self._versions.most_per_token(chunk.sequence)
        ids_TLK = np.full((chunk.num_tokens, len(self._layers), most), _ABSENT)
        for layer, ids_TK in enumerate(self._layers):
            mine_TK = ids_TK[first_row : first_row + chunk.num_tokens, :most]
            ids_TLK[:, layer, : mine_TK.shape[1]] = mine_TK
        highest = self._versions.highest(chunk.sequence.version)
        has_absent = bool((ids_TLK == _ABSENT).any())
        dtype = np.uint8 if highest + has_absent < 1 << 8 else np.uint16
        return np.where(ids_TLK == _ABSENT, np.iinfo(dtype).max, ids_TLK).astype(dtype)


def _untold(chunk: Chunk, ids_TLK: np.ndarray) -> ChunkTrace:
    first = chunk.sequence.window_start + chunk.start
    skip = min(max(0, chunk.sequence.num_traced - first), len(ids_TLK))
    return ChunkTrace(first + skip, ids_TLK[skip:].copy())
