"""Pure functions around the experts: group (token, expert) pairs, run them, combine by weight.

Shapes: T tokens, D d_model, E experts, K experts per token, P = T·K pairs, R rows that the pairs are of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_model.layers.expert_key import ExpertKey as ExpertKey

# One expert module of one layer: x_RD -> y_RD, without the residual.
Expert = Callable[[Tensor], Tensor]

_Order = TypeVar("_Order", Tensor, NDArray[Any])

# Bytes; torch allocates on this boundary.
CACHE_LINE = 64
# Up to here adding rows one by one takes less time than torch's operation needs to begin.
_FEW_PAIRS = 16


def by_layer(experts: Mapping[ExpertKey, Expert]) -> dict[int, dict[int, Expert]]:
    """layer -> slot -> module, in the order of the mapping."""
    layers: dict[int, dict[int, Expert]] = {}
    for (layer, slot), module in experts.items():
        layers.setdefault(layer, {})[slot] = module
    return layers


@dataclass(frozen=True, slots=True)
class Groups:
    """Pairs sorted by expert: `order_P` indexes the flattened [T, K] pairs, `counts_E` are the segments.

    Absent pairs, those of expert id E, are in neither.
    """

    order_P: Tensor
    counts_E: list[int]

    @property
    def segments(self) -> list[tuple[int, int]]:
        """(expert, number of rows) of the experts that have rows, by expert."""
        return [(expert, count) for expert, count in enumerate(self.counts_E) if count]


def sort_by_expert(expert_ids_P: NDArray[Any], n_experts: int) -> tuple[NDArray[Any], list[int]]:
    """`order_P` and `counts_E` as in Groups, of pairs that are on the CPU: numpy begins sooner than torch."""
    order_P = expert_ids_P.argsort(kind="stable")
    counts_E: list[int] = np.bincount(expert_ids_P, minlength=n_experts).tolist()
    return _without_absent(order_P, counts_E, n_experts), counts_E


def group_by_expert(expert_ids_TK: Tensor, n_experts: int) -> Groups:
    """Sorts the pairs by expert; within one expert the tokens keep their order."""
    flat_P = expert_ids_TK.flatten()
    if flat_P.is_cpu:
        sorted_P, counts_E = sort_by_expert(flat_P.numpy(), n_experts)
        return Groups(torch.from_numpy(sorted_P), counts_E)
    order_P = torch.argsort(flat_P, stable=True)
    counts_E = torch.bincount(flat_P, minlength=n_experts).tolist()
    return Groups(_without_absent(order_P, counts_E, n_experts), counts_E)


def _without_absent(order_P: _Order, counts_E: list[int], n_experts: int) -> _Order:
    """Takes absent pairs, which are sorted to the end, from both."""
    return order_P[: len(order_P) - counts_E.pop()] if len(counts_E) > n_experts else order_P


def compute_segments(
    experts: Mapping[int, Expert], x_PD: Tensor, segments: Sequence[tuple[int, int]]
) -> Tensor:
    """Runs each expert over its contiguous rows; returns y_PD in the same order."""
    parts = torch.split(x_PD, [count for _, count in segments])
    y_parts = [experts[e](_aligned(x_RD)) for (e, _), x_RD in zip(segments, parts, strict=True)]
    return y_parts[0] if len(y_parts) == 1 else torch.cat(y_parts)


def _aligned(x_RD: Tensor) -> Tensor:
    """The rows at the start of a cache line: a product's last bits may depend on where its operands begin,
    and the same rows begin elsewhere in another worker's slice."""
    return x_RD if x_RD.data_ptr() % CACHE_LINE == 0 else x_RD.clone()


def sum_pairs(y_PD: Tensor, weights_P: Tensor, row_index_P: Tensor | None, num_rows: int) -> Tensor:
    """Σ over the pairs of each row of weight · y, in float32, in the order of the pairs; pair p is of row p
    when there is no index.

    Products are rounded before they are added, as in `combine`: of two, the sum has the same bits wherever
    each of them was computed. Returns y_RD.
    """
    weighted_PD = y_PD * weights_P[:, None]
    if row_index_P is None:
        return weighted_PD
    y_RD = weighted_PD.new_zeros(num_rows, weighted_PD.shape[1])
    if len(weighted_PD) > _FEW_PAIRS or weighted_PD.device.type != "cpu":
        return y_RD.index_add_(0, row_index_P, weighted_PD)
    rows, pairs = y_RD.numpy(), weighted_PD.numpy()
    for pair, row in enumerate(row_index_P.tolist()):
        rows[row] += pairs[pair]
    return y_RD


def scatter_pairs(y_PD: Tensor, order_P: Tensor, num_tokens: int, top_k: int) -> Tensor:
    """Undoes the sort: y_TKD, where [t, k] is what token t's k-th expert said; zeros for an absent one."""
    num_places = num_tokens * top_k
    make = torch.empty if len(order_P) == num_places else torch.zeros
    y_TKD = make(num_places, y_PD.shape[1], dtype=y_PD.dtype, device=y_PD.device)
    y_TKD[order_P] = y_PD
    return y_TKD.view(num_tokens, top_k, -1)


def combine(weights_TK: Tensor, *slices_TKD: Tensor) -> Tensor:
    """Σ_k weight_k · y_k in float32, in the order of k; of several slices, the sum of theirs in their order.
    Returned in y's dtype.

    The order depends on the token alone, so neither placement nor batch can show in the sum.
    """
    y_TD = _weighted(weights_TK, slices_TKD[0])
    for y_TKD in slices_TKD[1:]:
        y_TD += _weighted(weights_TK, y_TKD)
    return y_TD.to(slices_TKD[0].dtype)


def _weighted(weights_TK: Tensor, y_TKD: Tensor) -> Tensor:
    y_TD = weights_TK[:, 0:1] * y_TKD[:, 0]
    for k in range(1, y_TKD.shape[1]):
        y_TD += weights_TK[:, k : k + 1] * y_TKD[:, k]
    return y_TD
