"""Dispatch: one layer's rows on their way to the workers and back, worked out when it begins. Of experts in
slices, each slice has one of its own.

Shapes: T tokens, K experts per token, C columns of the layer's router, D d_model.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from expert_workers.dispatch.combine import PairRows, Sums
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.routes import LayerTable
from expert_workers.dispatch.split import RowSlice, sort_pairs
from expert_workers.transports.base import Failure, FailureReason, Link, Pending
from expert_workers.wire import (
    DTYPES,
    ExpertCall,
    ExpertReply,
    ReplyForm,
    dtype_name,
    tensor_to_array,
    validate_reply,
)
from moe_model.errors import ReplyError
from moe_model.layers.router import Routing


class Sent(NamedTuple):
    """One worker's part. `started` is by time.perf_counter(), `deadline` by time.monotonic()."""

    link: Link
    part: RowSlice
    call: ExpertCall
    pending: Pending
    started: float
    deadline: float

    @property
    def num_pairs(self) -> int:
        return len(self.part.weights_P)

    @property
    def num_columns(self) -> int:
        return len(self.part.segments)

    def checked(self) -> ExpertReply | Failure:
        """The answer that has come, if it is one."""
        outcome = self.pending.outcome
        if isinstance(outcome, Failure):
            return outcome
        assert isinstance(outcome, ExpertReply), "a call is answered by a reply"
        try:
            validate_reply(self.link.rank, self.call, outcome)
        except ReplyError as error:
            return Failure(FailureReason.INVALID, str(error))
        return outcome


class Dispatch:
    """Belongs to the pool that began it. `todo_C` are the rows of columns that are yet to be sent, `open_C`
    of those that no worker has answered; `table` is the number of the table that these are of.

    Where columns have been cut into pieces, `pairs`, `todo_C` and `open_C` are of these, and `columns` says
    which column each is of.
    """

    __slots__ = (
        "columns",
        "counts_C",
        "device",
        "dtype",
        "form",
        "hedge_at",
        "layer",
        "num_open",
        "open_C",
        "pairs",
        "sent",
        "start_ns",
        "started",
        "table",
        "todo_C",
        "weights_TK",
        "wire_dtype",
        "x_TD",
    )

    def __init__(
        self,
        number: int,
        table: LayerTable,
        x_TD: Tensor,
        routing: Routing,
        options: PoolOptions,
        start_ns: int,
        started: float,
    ) -> None:
        self.layer, self.table = table.layer, number
        self.start_ns, self.started = start_ns, started
        self.device, self.dtype = x_TD.device, x_TD.dtype
        rows_TD = _on_cpu(x_TD)
        if self.dtype == torch.float32 and options.wire_dtype != "float32":
            rows_TD = rows_TD.to(DTYPES[options.wire_dtype][0])
        self.wire_dtype = dtype_name(rows_TD.dtype)
        self.x_TD = tensor_to_array(rows_TD.contiguous())
        self.weights_TK = _on_cpu(routing.weights_TK)
        ids_TK = _on_cpu(routing.expert_ids_TK).numpy()
        self.pairs = sort_pairs(ids_TK, self.weights_TK.numpy(), len(table.slots_C))
        self.form: ReplyForm = options.combine.form(ids_TK.shape[1])
        self.sent: list[Sent] = []
        self.columns: Sequence[int] = range(len(table.slots_C))
        self.counts_C = self.pairs.counts_E
        self._open_all()
        self.hedge_at: float | None = None

    def _open_all(self) -> None:
        self.todo_C = list(self.pairs.counts_E)
        self.open_C = list(self.todo_C)
        self.num_open = len(self.open_C) - self.open_C.count(0)

    def split(self, sizes: Sequence[Sequence[int]]) -> None:
        """Cuts each column into pieces of so many rows. Before anything is sent."""
        counts = [rows for parts in sizes for rows in parts]
        self.columns = [column for column, parts in enumerate(sizes) for _ in parts]
        self.pairs = replace(self.pairs, counts_E=counts, starts_E=[0, *accumulate(counts)])
        self._open_all()

    def holders(self, table: LayerTable) -> Sequence[tuple[int, ...]]:
        """Of each column or piece, by its table as it is now."""
        if isinstance(self.columns, range):
            return table.ranks_C
        return [table.ranks_C[column] for column in self.columns]

    def slots(self, table: LayerTable, part: RowSlice) -> tuple[tuple[int, int], ...]:
        """A part's segments as they travel: pieces of one column that go together are one."""
        if table.is_plain and isinstance(self.columns, range):
            return part.segments
        counts: dict[int, int] = {}
        for piece, rows in part.segments:
            slot = table.slots_C[self.columns[piece]]
            counts[slot] = counts.get(slot, 0) + rows
        return tuple(counts.items())

    def combiner(self) -> Sums | PairRows:
        width = self.x_TD.shape[1]
        if self.form is ReplyForm.SUM:
            return Sums(self.pairs, width)
        return PairRows(self.pairs, width, self.weights_TK)

    def is_open(self, part: RowSlice) -> bool:
        """Whether none of a part's columns has been answered."""
        for column, _ in part.segments:  # noqa: SIM110 - twice as quick as all()
            if not self.open_C[column]:
                return False
        return True

    def answered(self, part: RowSlice) -> None:
        for column, _ in part.segments:
            self.open_C[column] = self.todo_C[column] = 0
        self.num_open -= len(part.segments)

    def put_back(self, part: RowSlice) -> None:
        """This part is not answered: what no other worker has at hand of it must be sent again."""
        at_hand = {column for sent in self.sent for column, _ in sent.part.segments}
        for column, count in part.segments:
            if self.open_C[column] and column not in at_hand:
                self.todo_C[column] = count


def _on_cpu(tensor: Tensor) -> Tensor:
    # Operations that change nothing still cost a microsecond each.
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor if tensor.is_cpu else tensor.cpu()
