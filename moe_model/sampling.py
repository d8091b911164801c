"""Logits + parameters + (seed, sequence, position) -> token. Pure: no generator, no state, no batch.

A token depends on its own row of logits and on a number drawn from a counter, so neither its neighbours
in the batch nor a step that ran twice can change it.

Shapes: R rows, V vocabulary, C candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.errors import ConfigError

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request draws its tokens.

    temperature 0 is greedy and ignores the filters; top_k 0, top_p 1 and min_p 0 are off.
    The filters act in this order on logits / temperature: top_k, top_p, min_p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature: {self.temperature} is not a number >= 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k: {self.top_k} is negative")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p: {self.min_p} is not in [0, 1]")
        if not 0 <= self.seed <= _MASK64:
            raise ConfigError(f"seed: {self.seed} is not in [0, 2**64)")


def uniform(seed: int, sequence: int, position: int) -> float:
    """The number in [0, 1) that belongs to one token of one sequence of one request.

    Three rounds of the SplitMix64 finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
    generators", 2014), one per part of the counter; the top 53 bits are the fraction.
    """
    state = 0
    for part in (seed, sequence, position):
        state = _mix64((state ^ part) + 0x9E3779B97F4A7C15)
    return (state >> 11) * 2.0**-53


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


def filter_top_p(logits_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """Keeps a token while the mass of the more likely ones is < p; equals stand in the order of their ids."""
    sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True, stable=True)
    probs_RV = sorted_RV.double().softmax(dim=-1)
    mass_before_RV = probs_RV.cumsum(dim=-1) - probs_RV
    drop_sorted_RV = (mass_before_RV >= top_p_R.unsqueeze(1)) & (top_p_R < 1).unsqueeze(1)
    # The best token has no mass before it in exact arithmetic; in floats it may have a rounding's worth.
    drop_sorted_RV[:, 0] = False
    drop_RV = torch.zeros_like(drop_sorted_RV).scatter_(1, order_RV, drop_sorted_RV)
    return logits_RV.masked_fill(drop_RV, float("-inf"))


def filter_min_p(logits_RV: Tensor, min_p_R: Tensor) -> Tensor:
    """Keeps tokens at least min_p times as likely as the best one; 0 keeps all."""
    best_R1 = logits_RV.max(dim=-1, keepdim=True).values
    return logits_RV.masked_fill(logits_RV < best_R1 + min_p_R.log().unsqueeze(1), float("-inf"))


def draw(logits_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """Inverse of the cumulative distribution in the order of the columns; returns column indices."""
    cumulative_RV = logits_RV.double().softmax(dim=-1).cumsum(dim=-1)
    total_R1 = cumulative_RV[:, -1:]
    # Strictly below the total, whatever the product rounds to.
    target_R1 = torch.minimum(uniform_R.unsqueeze(1) * total_R1, torch.nextafter(total_R1, total_R1 * 0))
    # The first column whose cumulative mass exceeds the target: never one without mass of its own.
    return torch.searchsorted(cumulative_RV, target_R1, right=True).squeeze(1)


def sample(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> list[int]:
    """Returns one token id per row. `uniforms` holds each row's number in [0, 1)."""
    rows_of: dict[Callable[..., Tensor], list[int]] = {}
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


def _method(p: SamplingParams) -> Callable[[Tensor, Sequence[SamplingParams], Sequence[float]], Tensor]:
    if p.temperature == 0:
        return _greedy
    return _among_top_k if p.top_k else _among_all


def _greedy(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    return logits_RV.argmax(dim=-1)


def _among_all(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    scaled_RV = _scale(logits_RV, _doubles([p.temperature for p in params], logits_RV))
    if any(p.top_p < 1 for p in params):
        scaled_RV = filter_top_p(scaled_RV, _doubles([p.top_p for p in params], logits_RV))
    if any(p.min_p > 0 for p in params):
        scaled_RV = filter_min_p(scaled_RV, _doubles([p.min_p for p in params], logits_RV))
    return draw(scaled_RV, _doubles(uniforms, logits_RV))


def _scale(logits_RV: Tensor, temperature_R: Tensor) -> Tensor:
    """(logits - best) / temperature in float64: the best stays 0 however small the temperature is."""
    best_R1 = logits_RV.max(dim=-1, keepdim=True).values
    return (logits_RV.double() - best_R1) / temperature_R.unsqueeze(1)


def _among_top_k(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """The same as `_among_all` after `filter_top_k`, over the few columns that survive it."""
    vocab = logits_RV.shape[-1]
    top_k_R = torch.tensor([min(p.top_k, vocab) for p in params], device=logits_RV.device)
    kept_RV = filter_top_k(logits_RV, top_k_R)
    num_candidates = int((kept_RV > float("-inf")).sum(dim=-1).max())
    ids_RC = kept_RV.topk(max(num_candidates, 1), dim=-1).indices.sort(dim=-1).values
    picked_R = _among_all(kept_RV.gather(1, ids_RC), params, uniforms)
    return ids_RC.gather(1, picked_R.unsqueeze(1)).squeeze(1)


def _doubles(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)
