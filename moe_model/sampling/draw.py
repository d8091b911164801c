"""Logits + parameters + (seed, sequence, position) -> token. Pure: no generator, no state, no batch.

A token depends on its own row of logits and on a number drawn from a counter, so neither its neighbours
in the batch nor a step that ran twice can change it.

Shapes: R rows, V vocabulary, C candidates.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from moe_model.sampling.params import SamplingParams

_MASK64 = (1 << 64) - 1
# With a top_k up to this, only the best columns are looked at, and so many more for equals of the k-th.
MAX_TOP_K, TIES = 1024, 16
# So few numbers are drawn sooner one by one.
FROM_VECTORS = 16
# From so many weights on they are summed up by blocks of so many columns.
FROM_BLOCKS, BLOCK = 1 << 16, 128
# How near to a border of its column, as a part of all mass, a number may fall and its column still be sure.
UNSURE = 1e-9
# What float32 can divide any logit by.
MIN_DIVISOR, MAX_DIVISOR = 1e-30, 1e30


def uniform(seed: int, sequence: int, position: int) -> float:
    """The number in [0, 1) that belongs to one token of one sequence of one request.

    Three rounds of the SplitMix64 finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
    generators", 2014), one per part of the counter; the top 53 bits are the fraction.
    """
    state = 0
    for part in (seed, sequence, position):
        state = _mix64((state ^ part) + 0x9E3779B97F4A7C15)
    return (state >> 11) * 2.0**-53


def uniforms(seeds: Sequence[int], sequences: Sequence[int], positions: Sequence[int]) -> list[float]:
    """`uniform` of many tokens at once."""
    if len(seeds) < FROM_VECTORS:
        return [uniform(*parts) for parts in zip(seeds, sequences, positions, strict=True)]
    state_R = np.zeros(len(seeds), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in (seeds, sequences, positions):
            state_R = (state_R ^ np.array(part, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state_R = (state_R ^ (state_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state_R = (state_R ^ (state_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state_R ^= state_R >> np.uint64(31)
    result: list[float] = ((state_R >> np.uint64(11)) * 2.0**-53).tolist()
    return result


def _mix64(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def filter_top_k(logits_RV: Tensor, top_k_R: Tensor) -> Tensor:
    """Keeps every logit >= the row's k-th largest (ties stay); k = 0 or k >= V keeps all."""
    vocab = logits_RV.shape[-1]
    k_R = torch.where(top_k_R > 0, top_k_R, vocab).clamp(max=vocab)
    largest_RC = logits_RV.topk(int(k_R.max()), dim=-1).values
    threshold_R1 = largest_RC.gather(1, (k_R - 1).unsqueeze(1))
    return logits_RV.masked_fill(logits_RV < threshold_R1, float("-inf"))


def filter_top_p(weights_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """Weights that keep a token while the mass of the heavier ones is < p; the others become 0.

    Equals stand in the order of their ids. Only values are sorted: to sort ids along costs ten times as much.
    """
    sorted_RV = _descending(weights_RV)
    mass_RV = sorted_RV.cumsum(dim=-1, dtype=torch.float64)
    is_kept_RV = mass_RV - sorted_RV < top_p_R.unsqueeze(1) * mass_RV[:, -1:]
    num_kept_R1 = is_kept_RV.sum(dim=-1, keepdim=True).clamp(min=1)
    least_R1 = sorted_RV.gather(1, num_kept_R1 - 1)
    keep_RV = weights_RV >= least_R1
    num_equal_left_R1 = num_kept_R1 - (sorted_RV > least_R1).sum(dim=-1, keepdim=True)
    if bool((keep_RV.sum(dim=-1, keepdim=True) > num_kept_R1).any()):
        equal_RV = weights_RV == least_R1
        keep_RV &= ~equal_RV | (equal_RV.cumsum(dim=-1) <= num_equal_left_R1)
    return weights_RV * (keep_RV | (top_p_R >= 1).unsqueeze(1))


def filter_min_p(weights_RV: Tensor, min_p_R: Tensor) -> Tensor:
    """Keeps tokens at least min_p times as likely as the best one, whose weight is 1; 0 keeps all."""
    return weights_RV * (weights_RV >= min_p_R.unsqueeze(1))


def draw(weights_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """Inverse of the cumulative distribution in the order of the columns; returns column indices."""
    if weights_RV.device.type != "cpu" or weights_RV.numel() < FROM_BLOCKS:
        return draw_by_columns(weights_RV, uniform_R)
    column_R, is_unsure_R = draw_by_blocks(weights_RV, uniform_R)
    if bool(is_unsure_R.any()):
        column_R[is_unsure_R] = draw_by_columns(weights_RV[is_unsure_R], uniform_R[is_unsure_R])
    return column_R


def draw_by_columns(weights_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The definition: sums in the order of the columns, which decide what lies on their borders."""
    cumulative_RV = weights_RV.cumsum(dim=-1, dtype=torch.float64)
    target_R1 = _target(cumulative_RV[:, -1:], uniform_R)
    # The first column whose cumulative mass exceeds the target: never one without mass of its own.
    return torch.searchsorted(cumulative_RV, target_R1, right=True).squeeze(1)


def draw_by_blocks(weights_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a tenth of the sums kept, and is_unsure_R: what lies so near to a border of its column
    that the order of the sums might decide is not to be believed.

    Sums of V numbers in two orders differ by less than V * 2**-52 of the total, much less than UNSURE.
    """
    vocab = weights_RV.shape[-1]
    whole = vocab - vocab % BLOCK
    sums_RB = torch.unflatten(weights_RV[:, :whole], 1, (-1, BLOCK)).sum(dim=-1, dtype=torch.float64)
    if whole < vocab:
        rest_R1 = weights_RV[:, whole:].sum(dim=-1, keepdim=True, dtype=torch.float64)
        sums_RB = torch.cat((sums_RB, rest_R1), dim=1)
    ends_RB = sums_RB.cumsum(dim=-1)
    total_R1 = ends_RB[:, -1:]
    target_R1 = _target(total_R1, uniform_R)
    block_R1 = torch.searchsorted(ends_RB, target_R1, right=True)
    before_R1 = ends_RB.gather(1, block_R1) - sums_RB.gather(1, block_R1)
    column_RC = block_R1 * BLOCK + torch.arange(BLOCK)
    inside_RC = weights_RV.gather(1, column_RC.clamp(max=vocab - 1))
    ends_RC = inside_RC.cumsum(dim=-1, dtype=torch.float64) + before_R1
    place_R1 = torch.searchsorted(ends_RC, target_R1, right=True).clamp(max=BLOCK - 1)
    end_R1 = ends_RC.gather(1, place_R1)
    begin_R1 = end_R1 - inside_RC.gather(1, place_R1)
    room_R1 = torch.minimum(end_R1 - target_R1, target_R1 - begin_R1)
    return column_RC.gather(1, place_R1).squeeze(1), (room_R1 <= UNSURE * total_R1).squeeze(1)


def _target(total_R1: Tensor, uniform_R: Tensor) -> Tensor:
    """Strictly below the total, whatever the product rounds to."""
    return torch.minimum(uniform_R.unsqueeze(1) * total_R1, torch.nextafter(total_R1, total_R1 * 0))


def best_columns(logits_RV: Tensor) -> Tensor:
    """The first column of the largest logit of each row; of NaN, if there is one."""
    if logits_RV.device.type == "cpu" and logits_RV.dtype == torch.float32:
        # numpy's is vectorised: 32 rows of 16,384 take it a tenth of torch's time.
        return torch.from_numpy(logits_RV.numpy().argmax(axis=-1))
    return logits_RV.argmax(dim=-1)


def sample(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """Returns one token id per row. `uniforms` holds each row's number in [0, 1).

    Penalties and biases are the caller's: they change the logits before (penalties.py).
    """
    rows_of: dict[_Method, list[int]] = {}
    for row, p in enumerate(params):
        rows_of.setdefault(_method(p), []).append(row)
    if len(rows_of) == 1:
        (method,) = rows_of
        ids: list[int] = method(logits_RV, params, uniforms).tolist()
        return ids
    result = [0] * len(params)
    for method, rows in rows_of.items():
        picked = method(logits_RV[rows], [params[r] for r in rows], [uniforms[r] for r in rows])
        for row, token_id in zip(rows, picked.tolist(), strict=True):
            result[row] = token_id
    return result


_Method = Callable[[Tensor, Sequence[SamplingParams], Sequence[float]], Tensor]


def _method(p: SamplingParams) -> _Method:
    if p.temperature == 0:
        return _greedy
    if 0 < p.top_k <= MAX_TOP_K:
        return _among_best
    return _among_all if p.top_k or p.top_p == 1 else _nucleus


def _greedy(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    return best_columns(logits_RV)


def _among_all(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """The definition, over the whole vocabulary."""
    if any(p.top_k for p in params):
        vocab = logits_RV.shape[-1]
        top_k_R = torch.tensor([min(p.top_k, vocab) for p in params], device=logits_RV.device)
        logits_RV = filter_top_k(logits_RV, top_k_R)
    weights_RV = _weights(logits_RV, logits_RV.amax(dim=-1, keepdim=True), params)
    return _draw_filtered(weights_RV, params, uniforms)


def _nucleus(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """The same, apart from it so that rows without top_p are not sorted along."""
    return _among_all(logits_RV, params, uniforms)


def _draw_filtered(weights_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    if any(p.top_p < 1 for p in params):
        weights_RV = filter_top_p(weights_RV, _numbers([p.top_p for p in params], weights_RV))
    if any(p.min_p > 0 for p in params):
        weights_RV = filter_min_p(weights_RV, _numbers([p.min_p for p in params], weights_RV))
    return draw(weights_RV, _numbers(uniforms, weights_RV))


def _among_best(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """The same as `_among_all`, over the few best columns, which hold all that top_k keeps."""
    vocab = logits_RV.shape[-1]
    num_best = min(vocab, max(p.top_k for p in params) + TIES)
    best = logits_RV.topk(num_best, dim=-1)
    kth = [[min(p.top_k, num_best) - 1] for p in params]
    kth_R1 = best.values.gather(1, torch.tensor(kth, device=logits_RV.device))
    by_id = best.indices.sort(dim=-1)
    logits_RC = best.values.gather(1, by_id.indices)
    weights_RC = _weights(logits_RC, best.values[:, :1], params) * (logits_RC >= kth_R1)
    picked_R = _draw_filtered(weights_RC, params, uniforms)
    result_R = by_id.values.gather(1, picked_R.unsqueeze(1)).squeeze(1)
    # Of the columns that equal the last one some may be missing; they matter where top_k keeps that value.
    is_unsure_R = (kth_R1 <= best.values[:, -1:]).squeeze(1)
    if num_best < vocab and bool(is_unsure_R.any()):
        unsure = is_unsure_R.nonzero().squeeze(1).tolist()
        result_R[unsure] = _among_all(
            logits_RV[unsure], [params[r] for r in unsure], [uniforms[r] for r in unsure]
        )
    return result_R


def _weights(logits_RV: Tensor, best_R1: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """exp((logit - best) / temperature) in float32: 1 for the best, however small the temperature is."""
    temperatures = [min(max(p.temperature, MIN_DIVISOR), MAX_DIVISOR) for p in params]
    divisor_R1 = torch.tensor(temperatures, dtype=torch.float32, device=logits_RV.device).unsqueeze(1)
    return (logits_RV - best_R1).float().div_(divisor_R1).exp_()


def _descending(weights_RV: Tensor) -> Tensor:
    if weights_RV.device.type != "cpu":
        return weights_RV.sort(dim=-1, descending=True).values
    # numpy's sort is vectorised: 8 rows of 16,384 take it a tenth of torch's time.
    return torch.from_numpy(np.sort(weights_RV.numpy(), axis=-1)).flip(-1)


def _numbers(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)
