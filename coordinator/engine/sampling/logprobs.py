"""Logprobs of chosen tokens and of the best ones, for many rows at once.

Shapes: R rows, V vocabulary, N the most that a row wants of the best.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from coordinator.engine.messages.output import TokenLogprobs


def token_logprobs(
    logits_RV: Tensor, token_ids: Sequence[int], num_top: Sequence[int | None]
) -> list[TokenLogprobs | None]:
    """Of the raw distribution. `num_top` is how many of the best each row wants; None: nothing of it."""
    wanted = [row for row, count in enumerate(num_top) if count is not None]
    if not wanted:
        return [None] * len(token_ids)
    raw_RV = (logits_RV if len(wanted) == len(token_ids) else logits_RV[wanted]).float().log_softmax(dim=-1)
    chosen_R1 = torch.tensor([token_ids[row] for row in wanted], device=raw_RV.device).unsqueeze(1)
    logprob_R1 = raw_RV.gather(1, chosen_R1)
    ranks = ((raw_RV > logprob_R1).sum(dim=-1) + 1).tolist()
    tops = _tops(raw_RV, max(num_top[row] or 0 for row in wanted))
    result: list[TokenLogprobs | None] = [None] * len(token_ids)
    logprobs = logprob_R1.squeeze(1).tolist()
    for row, logprob, rank, top in zip(wanted, logprobs, ranks, tops, strict=True):
        result[row] = TokenLogprobs(token_ids[row], logprob, rank, top[: num_top[row]])
    return result


def _tops(raw_RV: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """(token id, logprob) of the best of each row; equals in the order of their ids."""
    count = min(count, raw_RV.shape[1])
    if not count:
        return [()] * len(raw_RV)
    # A few more, so that equals of the last one are cut by their ids as far as they are among them.
    num_best = min(count + 8, raw_RV.shape[1])
    ids_RN = raw_RV.topk(num_best, dim=-1, sorted=False).indices.sort(dim=-1).values
    best = raw_RV.gather(1, ids_RN).sort(dim=-1, descending=True, stable=True)
    ids_RN = ids_RN.gather(1, best.indices)
    rows = zip(ids_RN[:, :count].tolist(), best.values[:, :count].tolist(), strict=True)
    return [tuple(zip(ids, values, strict=True)) for ids, values in rows]
