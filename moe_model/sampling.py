"""Logits + parameters + (seed, sequence, position) -> token. Pure: no generator, no state, no batch.

A token depends on its own row of logits and on a number drawn from a counter, so neither its neighbours
in the batch nor a step that ran twice can change it.

Shapes: R rows, V vocabulary, C candidates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_model.errors import ConfigError

_MASK64 = (1 << 64) - 1
# How many of the best columns are looked at first; with top_k, so many more, for equals of the k-th.
MIN_CANDIDATES, MAX_CANDIDATES, TIES = 256, 1024, 16


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request draws its tokens.

    temperature 0 is greedy and ignores the filters; top_k 0, top_p 1 and min_p 0 are off.
    The filters act in this order on logits / temperature: top_k, top_p, min_p.
    `logit_bias` holds (token id, bias); penalties act on what was generated, `repetition_penalty` on the
    prompt as well.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature: {self.temperature} is not a number >= 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k: {self.top_k} is negative")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p: {self.min_p} is not in [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}: {getattr(self, name)} is not a number")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty: {self.repetition_penalty} is not a number > 0")
        if not all(token_id >= 0 and math.isfinite(bias) for token_id, bias in self.logit_bias):
            raise ConfigError("logit_bias: has a negative token id or a bias that is no number")
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


def uniforms(seeds: Sequence[int], sequences: Sequence[int], positions: Sequence[int]) -> list[float]:
    """`uniform` of many tokens at once."""
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
    if 0 < p.top_k <= MAX_CANDIDATES - TIES or (p.top_k == 0 and p.top_p < 1):
        return _among_best
    return _among_all


def _greedy(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    return logits_RV.argmax(dim=-1)


def _among_all(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """The definition, over the whole vocabulary."""
    if any(p.top_k for p in params):
        vocab = logits_RV.shape[-1]
        top_k_R = torch.tensor([min(p.top_k, vocab) for p in params], device=logits_RV.device)
        logits_RV = filter_top_k(logits_RV, top_k_R)
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


def _among_best(logits_RV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """The same as `_among_all`, over the few best columns where those hold all that the filters keep.

    A full sort of a vocabulary costs more than everything else that is done for a token.
    """
    vocab, device = logits_RV.shape[-1], logits_RV.device
    num_best = min(vocab, max(MIN_CANDIDATES, max(p.top_k for p in params) + TIES))
    logits_RC, ids_RC = _best_columns(logits_RV, num_best)
    top_k_R = torch.tensor([p.top_k for p in params], device=device)
    temperature_R = _doubles([p.temperature for p in params], logits_RV)
    top_p_R1 = _doubles([p.top_p for p in params], logits_RV).unsqueeze(1)
    scaled_RC = (logits_RC.double() - logits_RC[:, :1]) / temperature_R.unsqueeze(1)
    kth_R1 = logits_RC.gather(1, (top_k_R - 1).clamp(0, num_best - 1).unsqueeze(1))
    scaled_RC = scaled_RC.masked_fill((top_k_R > 0).unsqueeze(1) & (logits_RC < kth_R1), float("-inf"))
    exp_RC = scaled_RC.exp()
    # What the mass is a part of: the row's k best, or the row as a whole.
    total_R = exp_RC.sum(dim=-1)
    if any(p.top_k == 0 for p in params):
        total_R = torch.where(top_k_R > 0, total_R, _scale(logits_RV, temperature_R).exp().sum(dim=-1))
    mass_RC = exp_RC / total_R.unsqueeze(1)
    drop_RC = (mass_RC.cumsum(dim=-1) - mass_RC >= top_p_R1) & (top_p_R1 < 1)
    drop_RC[:, 0] = False
    scaled_RC = scaled_RC.masked_fill(drop_RC, float("-inf"))
    if any(p.min_p > 0 for p in params):
        scaled_RC = filter_min_p(scaled_RC, _doubles([p.min_p for p in params], logits_RV))
    by_id = ids_RC.sort(dim=-1)
    picked_R = draw(scaled_RC.gather(1, by_id.indices), _doubles(uniforms, logits_RV))
    result_R = by_id.values.gather(1, picked_R.unsqueeze(1)).squeeze(1)
    # Of the columns that equal the last one some may be missing: none of those may have been kept, nor have
    # been a part of the mass.
    last_kept_R = logits_RC.masked_fill(scaled_RC == float("-inf"), float("inf")).amin(dim=-1)
    cut_R = torch.where(top_k_R > 0, torch.minimum(last_kept_R, kth_R1.squeeze(1)), last_kept_R)
    unsure = (cut_R <= logits_RC[:, -1]).nonzero().squeeze(1).tolist() if num_best < vocab else []
    if unsure:
        result_R[unsure] = _among_all(
            logits_RV[unsure], [params[r] for r in unsure], [uniforms[r] for r in unsure]
        )
    return result_R


def _best_columns(logits_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and ids of the largest, best first; equals in the order of their ids."""
    ids_RC = logits_RV.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    best = logits_RV.gather(1, ids_RC).sort(dim=-1, descending=True, stable=True)
    return best.values, ids_RC.gather(1, best.indices)


def _doubles(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)
