"""Keeps which experts the tokens of a step were routed to, for the requests that want to know.

Shapes: T tokens of the step, L layers, K experts per token.
"""

import numpy as np

from coordinator.engine.batch import Batch
from coordinator.engine.scheduler import Chunk
from coordinator.engine.step_result import ChunkTrace
from moe_model.config import ModelConfig
from moe_model.router import ExpertSelection, Routing


def wants_trace(chunk: Chunk) -> bool:
    return chunk.sequence.request.returns.routed_experts


def experts_per_token(selection: ExpertSelection | None, config: ModelConfig) -> int:
    """How many experts every token of a request goes to."""
    if selection is None:
        return config.top_k
    num_allowed = config.n_experts if selection.allowed is None else len(selection.allowed)
    return min(selection.top_k or config.top_k, num_allowed)


class RoutingTrace:
    """The routing of one step; `observe` is called once per layer."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._layers: list[np.ndarray] = []

    def observe(self, _layer: int, routing: Routing) -> None:
        dtype = np.uint8 if self._config.n_experts <= 1 << 8 else np.uint16
        self._layers.append(routing.expert_ids_TK.cpu().numpy().astype(dtype))

    def chunks(self, batch: Batch) -> dict[int, ChunkTrace]:
        """By the key of the sequence; what an earlier step has told is left out."""
        ids_TLK = np.stack(self._layers, axis=1)
        traces = {}
        for chunk, first_row in zip(batch.chunks, batch.first_rows, strict=True):
            if wants_trace(chunk):
                num_experts = experts_per_token(chunk.sequence.request.experts, self._config)
                rows = ids_TLK[first_row : first_row + chunk.num_tokens, :, :num_experts]
                traces[chunk.sequence.key] = _untold(chunk, rows)
        return traces


def _untold(chunk: Chunk, ids_TLK: np.ndarray) -> ChunkTrace:
    first = chunk.sequence.window_start + chunk.start
    skip = min(max(0, chunk.sequence.num_traced - first), len(ids_TLK))
    return ChunkTrace(first + skip, ids_TLK[skip:].copy())
