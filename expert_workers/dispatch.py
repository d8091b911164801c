"""Dispatch: one layer's rows on their way to the workers and back, worked out when it begins.

Shapes: T tokens, K experts per token, D d_model.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from expert_workers.assembly import Combine, PairRows, Sums
from expert_workers.slices import RowSlice, sort_pairs
from expert_workers.transport import Pending
from expert_workers.wire import DTYPES, ExpertCall, ExpertReply, ReplyForm, dtype_name, tensor_to_array
from moe_model.router import Routing


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Seconds; one dispatch may take `call_timeout` for each worker that is lost on its way.

    `wire_dtype` is that of float32 rows as they travel to the workers; bfloat16 rows travel as they are. What
    comes back is float32 in any case.
    """

    call_timeout: float = 10.0
    start_timeout: float = 30.0
    retry_interval: float = 0.5
    wire_dtype: str = "float32"
    combine: Combine = Combine.EXACT


class Sent(NamedTuple):
    """One worker's part. `num_losses` is how often that worker had been lost before."""

    rank: int
    part: RowSlice
    call: ExpertCall
    pending: Pending[ExpertReply]
    num_losses: int


class Dispatch:
    """Belongs to the pool that began it."""

    __slots__ = (
        "deadline",
        "device",
        "dtype",
        "form",
        "layer",
        "pairs",
        "sent",
        "start_ns",
        "started",
        "weights_TK",
        "wire_dtype",
        "x_TD",
    )

    def __init__(
        self,
        layer: int,
        x_TD: Tensor,
        routing: Routing,
        n_experts: int,
        options: PoolOptions,
        start_ns: int,
        started: float,
    ) -> None:
        self.layer = layer
        self.start_ns, self.started = start_ns, started
        self.device, self.dtype = x_TD.device, x_TD.dtype
        rows_TD = _on_cpu(x_TD)
        if self.dtype == torch.float32 and options.wire_dtype != "float32":
            rows_TD = rows_TD.to(DTYPES[options.wire_dtype][0])
        self.wire_dtype = dtype_name(rows_TD.dtype)
        self.x_TD = tensor_to_array(rows_TD.contiguous())
        self.weights_TK = _on_cpu(routing.weights_TK)
        ids_TK = _on_cpu(routing.expert_ids_TK).numpy()
        self.pairs = sort_pairs(ids_TK, self.weights_TK.numpy(), n_experts)
        self.form: ReplyForm = options.combine.form(ids_TK.shape[1])
        self.sent: list[Sent] = []
        self.deadline = 0.0

    def assembly(self) -> Sums | PairRows:
        width = self.x_TD.shape[1]
        if self.form is ReplyForm.SUM:
            return Sums(self.pairs, width)
        return PairRows(self.pairs, width, self.weights_TK)


def _on_cpu(tensor: Tensor) -> Tensor:
    # Operations that change nothing still cost a microsecond each.
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor if tensor.is_cpu else tensor.cpu()
