"""Runs one step through the model and draws tokens. Owns the cache tensors; moves no progress."""

import torch
from torch import Tensor

from coordinator.engine.attention import paged_attention
from coordinator.engine.batch import build_batch
from coordinator.engine.kv_cache import KVCache
from coordinator.engine.scheduler import Chunk, Step
from moe_model.model import Model
from moe_model.sampling import sample, uniform


class ModelRunner:
    """A model, its cache, and the way from a Step to tokens."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    @torch.inference_mode()
    def run(self, step: Step) -> list[int | None]:
        """Returns the next token of each of `step.sampling`; None where the logits are not finite.

        Running a step twice gives the same tokens: the cache is written by position, the draw by counter.
        """
        batch = build_batch(step, self._cache.block_size, self._model.device)
        attend = paged_attention(self._cache, batch)
        h_TD = self._model.forward(batch.token_ids_T, batch.positions_T, attend)
        sampling = step.sampling
        if not sampling:
            return []
        return _draw(self._model.logits(h_TD[batch.sample_rows]), sampling)


def _draw(logits_RV: Tensor, chunks: list[Chunk]) -> list[int | None]:
    # The maximum is not finite as soon as one entry is NaN or +inf, and costs one pass over the row.
    finite_R = logits_RV.amax(dim=-1).isfinite()
    requests = [chunk.sequence.request for chunk in chunks]
    uniforms = [
        uniform(r.sampling.seed, r.sequence_index, len(c.sequence.token_ids))
        for r, c in zip(requests, chunks, strict=True)
    ]
    all_finite = bool(finite_R.all())
    safe_RV = logits_RV if all_finite else logits_RV.nan_to_num()
    ids = sample(safe_RV, [r.sampling for r in requests], uniforms)
    if all_finite:
        return list(ids)
    return [token if ok else None for token, ok in zip(ids, finite_R.tolist(), strict=True)]
