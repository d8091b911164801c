"""Runs one step through the model and draws tokens. Owns the cache tensors; moves no progress.

Shapes: T tokens of the step, D d_model, R rows that sample, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from coordinator.engine.attention.torch_attention import AttentionPlan, paged_attention
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.acceptance import Accepted, accept, sampling_rows
from coordinator.engine.core.batch import Batch, build_batch, join_batches, split_step
from coordinator.engine.core.forcing import Forcing
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.routing_trace import RoutingTrace, asked_for, wants_trace
from coordinator.engine.core.step import Chunk, Step
from coordinator.engine.core.step_result import RoutedRows, StepResult
from coordinator.engine.messages.output import TokenLogprobs
from coordinator.engine.sampling.logprobs import token_logprobs
from coordinator.engine.sampling.prompt_scores import score_prompts
from coordinator.engine.sampling.sampler import Drawn, Sampler
from coordinator.engine.versions.model_versions import ModelVersions
from moe_model.errors import ExpertMeshError, NumericError
from moe_model.model import Model, Part


class ModelRunner:
    """A model, its cache, and the way from a Step to tokens."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        plan: AttentionPlan = paged_attention,
        overlap: Overlap | None = None,
        sampler: Sampler | None = None,
        versions: ModelVersions | None = None,
        is_recorded: Callable[[], bool] | None = None,
        forcing: Forcing | None = None,
    ) -> None:
        """`overlap` decides how many parts of a step are in flight; None: one. `sampler` None: a new one.

        `versions` None: the model stays as it is. `is_recorded`: whether the routing of all sequences is
        wanted at the moment. `forcing`: which experts rows are made to go to.
        """
        self._model = model
        self._cache = cache
        self._plan = plan
        self._overlap = overlap
        self._sampler = sampler or Sampler(model.config.vocab_size, model.device)
        self._versions = versions or ModelVersions(model)
        self._is_recorded, self._forcing = is_recorded, forcing
        self._last_tells = cache.windows[cache.group_of(model.config.n_layers - 1)] is None

    @torch.inference_mode()
    def run(self, step: Step) -> StepResult:
        """Running a step twice gives the same: the cache is written by position, the draw is by counter."""
        is_recorded = self._is_recorded is not None and self._is_recorded()
        is_traced = is_recorded or any(map(wants_trace, step.chunks))
        h_TD, batch, routed = self._forward(step, is_traced=is_traced)
        accepted = self._draw(h_TD, batch, step.sampling)
        return StepResult(
            accepted.token_ids,
            accepted.logprobs,
            _broken_numbers(h_TD, batch, last_tells=self._last_tells) | accepted.failures,
            accepted.further,
            accepted.further_logprobs,
            score_prompts(self._model, h_TD, batch),
            asked_for(routed, self._versions) if is_traced else {},
            routed if is_recorded else (),
        )

    @torch.inference_mode()
    def forget(self, key: int) -> None:
        """For a sequence that will not come again."""
        self._sampler.forget(key)

    def _forward(self, step: Step, *, is_traced: bool) -> tuple[Tensor, Batch, Sequence[RoutedRows]]:
        overlap = self._overlap
        if overlap is None:
            return self._forward_parts([step], is_traced=is_traced)
        with overlap.timed(step.num_tokens) as num_parts:
            return self._forward_parts(split_step(step, num_parts), is_traced=is_traced)

    def _forward_parts(
        self, steps: Sequence[Step], *, is_traced: bool
    ) -> tuple[Tensor, Batch, Sequence[RoutedRows]]:
        batches = [build_batch(step, self._cache.block_size, self._model.device) for step in steps]
        traces = [RoutingTrace(self._versions) if is_traced else None for _ in batches]
        h_TD = self._model.forward_parts(list(map(self._part, batches, traces)))
        routed = [
            rows
            for trace, batch in zip(traces, batches, strict=True)
            if trace is not None
            for rows in trace.rows(batch)
        ]
        return h_TD, join_batches(batches), routed

    def _part(self, batch: Batch, trace: RoutingTrace | None) -> Part:
        return Part(
            batch.token_ids_T,
            batch.positions_T,
            self._plan(self._cache, batch),
            None if trace is None else trace.observe,
            self._versions.route(batch.chunks),
            None if self._forcing is None else self._forcing.rows(batch),
            None if trace is None else trace.record,
        )

    def _draw(self, h_TD: Tensor, batch: Batch, chunks: list[Chunk]) -> Accepted:
        if not chunks:
            return Accepted()
        rows = sampling_rows(chunks)
        # As many as there are tokens: these are single ones and drafts, in their order.
        is_whole = len(rows) == len(h_TD)
        logits_RV = self._model.logits(h_TD if is_whole else h_TD[batch.sample_rows])
        drawn = self._sampler.draw(logits_RV, rows)
        return accept(chunks, drawn, _logprobs(logits_RV, drawn, chunks))


def _logprobs(logits_RV: Tensor, drawn: Drawn, chunks: Sequence[Chunk]) -> list[TokenLogprobs | None]:
    """Of each row, or none at all where no request wants them."""
    wanted = [
        chunk.sequence.request.returns.logprobs for chunk in chunks for _ in range(1 + len(chunk.draft))
    ]
    if all(num_top is None for num_top in wanted):
        return []
    # A row without a token ends its request; what its logprobs are is all the same.
    token_ids = [0 if token_id is None else token_id for token_id in drawn.token_ids]
    return token_logprobs(logits_RV, token_ids, wanted)


def _broken_numbers(h_TD: Tensor, batch: Batch, *, last_tells: bool) -> dict[int, ExpertMeshError]:
    """By the key of the sequence: chunks whose numbers are broken where no logits show it.

    What is not finite at one position is so at every later one that attends to it, so the last row tells
    (`last_tells`), and where a token is drawn, its logits. If the last layer has a window, every row is
    looked at: behind the window others might share what is broken.
    """
    found = {}
    for chunk, first_row in zip(batch.chunks, batch.first_rows, strict=True):
        if chunk.num_known == 1 and chunk.samples:
            # Nearly always. Each of its rows has logits.
            continue
        rows = range(first_row, first_row + chunk.num_known)
        looked_at = rows[-1:] if last_tells else rows
        if chunk.samples:
            looked_at = looked_at[:-1]
        if looked_at:
            found[chunk.sequence.key] = slice(looked_at.start, looked_at.stop)
    if not found:
        return {}
    finite_T = h_TD.sum(dim=-1).isfinite()
    message = "the model's numbers are not finite"
    return {key: NumericError(message) for key, rows in found.items() if not finite_T[rows].all()}
