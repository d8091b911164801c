"""Routing over the C kernels. Shapes: T tokens, E experts, K experts per token."""

import torch
from torch import Tensor

from moe_model.kernels.native import _kernels
from moe_model.kernels.native.linear import NativeMatrix
from moe_model.kernels.native.runtime import Runtime, address_of, rows_of
from moe_model.layers.router import Routing, RowSelection


class NativeRouter:
    """The rule SoftmaxOfTopK; among equals the lower expert comes first."""

    def __init__(self, runtime: Runtime, gate: NativeMatrix, top_k: int) -> None:
        self._runtime = runtime
        self._gate = gate
        self._top_k = top_k

    def __call__(self, x_TD: Tensor, selection: RowSelection | None = None) -> Routing:
        num_tokens = rows_of(x_TD, self._gate.num_in)
        logits_TE = torch.empty(num_tokens, self._gate.num_out)
        num_places = self._top_k if selection is None else selection.most
        weights_TK = torch.empty(num_tokens, num_places)
        expert_ids_TK = torch.empty(num_tokens, num_places, dtype=torch.int64)
        _kernels.route(
            self._runtime.kernels,
            self._gate.handle,
            x_TD.data_ptr(),
            num_tokens,
            num_places,
            logits_TE.data_ptr(),
            0 if selection is None else address_of(selection.allowed_TE),
            0 if selection is None else address_of(selection.top_k_T),
            weights_TK.data_ptr(),
            expert_ids_TK.data_ptr(),
            self._runtime.num_threads,
        )
        return Routing(weights_TK, expert_ids_TK, logits_TE)
