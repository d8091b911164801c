"""Draws one token for each row of a batch, whatever each row wants. Owns what it has counted of each.

A row whose parameters ask for nothing costs nothing; the others are changed together, in a few operations.

Shapes: R rows, V vocabulary, W int32 words of a mask, S slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coordinator.engine.sampling.sampling_row import SamplingRow
from coordinator.engine.sampling.token_counts import TokenCounts
from moe_model.errors import ExpertMeshError, NumericError
from moe_model.sampling.draw import best_columns, sample, uniforms
from moe_model.sampling.penalties import add_bias, penalize


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token per row; None where there is none to be had, and why: `failures` by row."""

    token_ids: list[int | None]
    failures: Mapping[int, ExpertMeshError]


class Sampler:
    """Belongs to the engine's thread. Drawing twice gives the same tokens."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self._vocab_size = vocab_size
        self._counts = TokenCounts(vocab_size, device)

    def draw(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Drawn:
        """Leaves `logits_RV` as they are."""
        if all(row.takes_best for row in rows):
            best_R = best_columns(logits_RV)
            # NaN and +inf are the largest of any row that they are in, so the best shows them.
            if bool(logits_RV.gather(1, best_R.unsqueeze(1)).isfinite().all()):
                return Drawn(best_R.tolist(), {})
        # The maximum is not finite as soon as one entry is NaN or +inf, and costs one pass over the row.
        finite_R = logits_RV.amax(dim=-1).isfinite()
        if bool(finite_R.all()):
            safe_RV, failures = logits_RV, dict[int, ExpertMeshError]()
        else:
            safe_RV = logits_RV.nan_to_num()
            broken = (~finite_R).nonzero().squeeze(1).tolist()
            failures = {row: NumericError("the model's logits are not finite") for row in broken}
        changed_RV = self._changed(safe_RV, rows, failures)
        ids = sample(changed_RV, [row.params for row in rows], _numbers(rows))
        if not failures:
            return Drawn(list(ids), failures)
        return Drawn([None if row in failures else i for row, i in enumerate(ids)], failures)

    def forget(self, key: int) -> None:
        """The sequence is gone."""
        self._counts.forget(key)

    def _changed(
        self, logits_RV: Tensor, rows: Sequence[SamplingRow], failures: dict[int, ExpertMeshError]
    ) -> Tensor:
        """The logits after biases, penalties, constraints and rules; the same tensor where there are none.

        Adds the rows that have no token left to draw to `failures`.
        """
        biased = [i for i, row in enumerate(rows) if row.params.logit_bias]
        penalized = [i for i, row in enumerate(rows) if row.is_penalized]
        restricted = [i for i, row in enumerate(rows) if row.is_restricted]
        if not (biased or penalized or restricted):
            return logits_RV
        logits_RV = logits_RV.clone()
        if biased:
            add_bias(logits_RV, biased, [rows[i].params for i in biased])
        if penalized:
            chosen = [rows[i] for i in penalized]
            seen = self._counts.of([(row.key, row.token_ids, row.num_prompt, row.drafted) for row in chosen])
            rows_R1 = torch.tensor(penalized, device=logits_RV.device).unsqueeze(1)
            # Only what was seen changes; a token that stands there twice is written twice, the same.
            places = (rows_R1, seen.token_ids_RL)
            params = [row.params for row in chosen]
            logits_RV[places] = penalize(logits_RV[places], seen.output_counts_RL, params)
        if restricted:
            allowed_RV = self._allowed({i: rows[i] for i in restricted}, failures).to(logits_RV.device)
            logits_RV[restricted] = logits_RV[restricted].masked_fill(~allowed_RV, float("-inf"))
        return logits_RV

    def _allowed(self, rows: Mapping[int, SamplingRow], failures: dict[int, ExpertMeshError]) -> Tensor:
        mask_RW = np.full((len(rows), -(-self._vocab_size // 32)), -1, dtype="<i4")
        for mask_W, (number, row) in zip(mask_RW, rows.items(), strict=True):
            if row.matcher is not None:
                try:
                    row.matcher.fill_mask(mask_W)
                except ExpertMeshError as error:
                    failures[number] = error
                    # Of a row that nothing is taken from, anything may be drawn.
                    mask_W[:] = -1
        bits_RV = np.unpackbits(mask_RW.view(np.uint8), axis=1, bitorder="little", count=self._vocab_size)
        allowed_RV = bits_RV.view(np.bool_)
        for allowed_V, (number, row) in zip(allowed_RV, rows.items(), strict=True):
            if row.token_mask is not None and number not in failures:
                try:
                    row.token_mask.apply(allowed_V, row.all_ids, row.num_prompt)
                except ExpertMeshError as error:
                    failures[number] = error
                    allowed_V[:] = True
        return torch.from_numpy(allowed_RV)


def _numbers(rows: Sequence[SamplingRow]) -> list[float]:
    """Each row's own; where all are greedy, they are not used."""
    if all(row.params.temperature == 0 for row in rows):
        return [0.0] * len(rows)
    return uniforms(
        [row.params.seed for row in rows],
        [row.sequence_index for row in rows],
        [row.num_tokens for row in rows],
    )
