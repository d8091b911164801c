"""Keeps which experts the tokens of a step were routed to: for requests that want to know, and for a
recording.

Shapes: T tokens of the step, L layers that have experts, K experts per token.
"""

from collections.abc import Sequence as Seq

import numpy as np
from torch import Tensor

from coordinator.engine.core.batch import Batch
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Chunk
from coordinator.engine.core.step_result import ChunkTrace, RoutedRows
from coordinator.engine.versions.model_versions import ModelVersions
from moe_model.layers.router import Routing

_ABSENT = np.iinfo(np.uint16).max


def wants_trace(chunk: Chunk) -> bool:
    return chunk.sequence.request.returns.routed_experts


class RoutingTrace:
    """The routing of one part of a step. It is told once per layer, by `observe`, or of all layers at
    once."""

    def __init__(self, versions: ModelVersions) -> None:
        self._versions = versions
        self._layers: list[np.ndarray] = []
        self._columns_TLK: np.ndarray | None = None

    def observe(self, layer: int, routing: Routing) -> None:
        columns_TK = routing.expert_ids_TK.cpu().numpy()
        self._layers.append(self._versions.experts_by_column(layer, _ABSENT)[columns_TK])

    def record(self, columns_TLK: Tensor) -> None:
        self._columns_TLK = columns_TLK.numpy().view(np.uint16)

    def ids(self) -> np.ndarray:
        """ids_TLK, uint16, once the part is done."""
        if self._columns_TLK is not None:
            return self._versions.experts_of_columns(self._columns_TLK, _ABSENT)
        most = max(ids_TK.shape[1] for ids_TK in self._layers)
        ids_TLK = np.full((len(self._layers[0]), len(self._layers), most), _ABSENT, dtype=np.uint16)
        for layer, ids_TK in enumerate(self._layers):
            ids_TLK[:, layer, : ids_TK.shape[1]] = ids_TK
        return ids_TLK

    def rows(self, batch: Batch) -> list[RoutedRows]:
        """Of the part's own batch."""
        ids_TLK = self.ids()
        return [
            RoutedRows(
                chunk.sequence,
                chunk.sequence.window_start + chunk.start,
                ids_TLK[first_row : first_row + chunk.num_tokens],
                len(chunk.draft),
            )
            for chunk, first_row in zip(batch.chunks, batch.first_rows, strict=True)
        ]


def asked_for(rows: Seq[RoutedRows], versions: ModelVersions) -> dict[int, ChunkTrace]:
    """By the key of the sequence; what an earlier step has told is left out."""
    return {
        each.sequence.key: _untold(each, versions)
        for each in rows
        if each.sequence.request.returns.routed_experts
    }


def _untold(rows: RoutedRows, versions: ModelVersions) -> ChunkTrace:
    sequence, first = rows.sequence, rows.first_position
    skip = min(max(0, sequence.num_traced - first), len(rows.ids_TLK))
    return ChunkTrace(first + skip, _narrow(rows.ids_TLK[skip:], sequence, versions))


def _narrow(ids_TLK: np.ndarray, sequence: Sequence, versions: ModelVersions) -> np.ndarray:
    """Expert ids in one byte where all fit. A layer that has fewer experts for the request than another has
    the largest number of the type in the places that are left."""
    ids_TLK = ids_TLK[:, :, : versions.most_per_token(sequence)]
    highest, has_absent = versions.highest(sequence.version), bool((ids_TLK == _ABSENT).any())
    # The low byte of no expert is that of a byte.
    return ids_TLK.astype(np.uint8 if highest + has_absent < 1 << 8 else np.uint16)
