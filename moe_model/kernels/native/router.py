"""Routing over the C kernels. Shapes: T tokens, D d_model, E experts, K experts per token."""

from typing import NamedTuple

import torch
from torch import Tensor

from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import NativeLinear, NativeMatrix
from moe_model.kernels.native.runtime import Runtime, address_of, rows_of
from moe_model.layers.expert_groups import ExpertGroups
from moe_model.layers.router import Routing, RowSelection
from moe_model.layers.router_rules import (
    CorrectedSoftmax,
    RouterRule,
    SoftmaxOfTopK,
    TopKOfSigmoid,
    TopKOfSoftmax,
)

# As in src/choose.h.
_SCORE_CHOSEN, _SCORE_SOFTMAX, _SCORE_SIGMOID = range(3)
_MOST_GROUPS, _MOST_COUNTED = 256, 8
_CHOICE_FLOATS = 3
# Of a rule that divides by no sum.
_NOT_DIVIDED = -1.0


class _Rule(NamedTuple):
    """As C has it."""

    scoring: int
    scale: float = 1.0
    sum_more: float = _NOT_DIVIDED
    sum_least: float = 0.0
    groups: ExpertGroups | None = None


class NativeRouter:
    """A rule over the logits of a gate; among equals the lower expert comes first."""

    def __init__(
        self,
        runtime: Runtime,
        gate: NativeMatrix,
        rule: RouterRule,
        top_k: int,
        correction_E: Tensor | None = None,
    ) -> None:
        """`rule` is one that `has_code` for."""
        self._runtime = runtime
        self.gate = gate
        self.top_k = top_k
        found = _in_c(rule)
        assert found is not None
        groups = found.groups or ExpertGroups(0, 0, 0, 0)
        # C points into it.
        self._correction_E = None if correction_E is None else correction_E.float().contiguous()
        self.rule = _kernels.rule(
            *found[:4],
            address_of(self._correction_E),
            groups.num_groups,
            groups.num_kept,
            groups.size,
            groups.num_counted,
        )

    def __call__(self, x_TD: Tensor, selection: RowSelection | None = None) -> Routing:
        num_tokens, n_experts = rows_of(x_TD, self.gate.num_in), self.gate.num_out
        logits_TE = torch.empty(num_tokens, n_experts)
        num_places = self.top_k if selection is None else selection.most
        weights_TK = torch.empty(num_tokens, num_places)
        expert_ids_TK = torch.empty(num_tokens, num_places, dtype=torch.int64)
        _kernels.route(
            self._runtime.kernels,
            self.gate.handle,
            self.rule,
            x_TD.data_ptr(),
            num_tokens,
            num_places,
            logits_TE.data_ptr(),
            0 if selection is None else address_of(selection.allowed_TE),
            0 if selection is None else address_of(selection.top_k_T),
            weights_TK.data_ptr(),
            expert_ids_TK.data_ptr(),
            self._runtime.scratch.address(4 * _CHOICE_FLOATS * n_experts * self._runtime.num_threads),
            self._runtime.num_threads,
        )
        return Routing(weights_TK, expert_ids_TK, logits_TE)


class NativeRowGate:
    """As `kernels.base.RowGate`, in place."""

    def __init__(self, runtime: Runtime, linear: NativeLinear) -> None:
        self._runtime = runtime
        self.linear = linear

    def __call__(self, y_TD: Tensor, x_TD: Tensor) -> Tensor:
        num_rows, width = y_TD.shape
        gate_T1 = self.linear(x_TD)
        assert len(gate_T1) == rows_of(y_TD, width)
        _kernels.gate_rows(self._runtime.kernels, y_TD.data_ptr(), num_rows, width, gate_T1.data_ptr())
        return y_TD


def has_code(rule: RouterRule) -> bool:
    """Whether a rule is in C; another one is applied as it is, to the logits of C."""
    return _in_c(rule) is not None


def _in_c(rule: RouterRule) -> _Rule | None:
    found = None
    if isinstance(rule, SoftmaxOfTopK):
        found = _Rule(_SCORE_CHOSEN)
    elif isinstance(rule, TopKOfSoftmax | TopKOfSigmoid):
        scoring = _SCORE_SOFTMAX if isinstance(rule, TopKOfSoftmax) else _SCORE_SIGMOID
        found = _Rule(scoring, rule.scale, 1e-20 if rule.is_renormalised else _NOT_DIVIDED, 0.0, rule.groups)
    elif isinstance(rule, CorrectedSoftmax):
        found = _Rule(_SCORE_SOFTMAX, sum_more=0.0, sum_least=rule.norm_min)
    if found is None or found.groups is None:
        return found
    fits = found.groups.num_groups <= _MOST_GROUPS and found.groups.num_counted <= _MOST_COUNTED
    return found if fits else None
