"""NativeWay: dispatches in C (native/src), from a layer's rows to its sums, while nothing is uncommon.

What is uncommon is Python's: a link that is no plain socket, experts that no worker holds, rows on a GPU, a
call that is late, wrong or slow. What is on its way then is handed over, and the links with it, until all of
them are quiet again.
Shapes: T tokens, D d_model, K experts per token.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expert_workers.dispatch.assign import LEAST_ROWS
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.dispatch import Dispatch
from expert_workers.dispatch.links import LinkedRoutes
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.pool_stats import Counts, DispatchRecord
from expert_workers.dispatch.routes import LayerTable
from expert_workers.dispatch.worker_speeds import WorkerSpeeds
from expert_workers.transports.base import LentCall, Link
from moe_model.layers.router import Routing

try:
    from expert_workers.dispatch.native import _dispatch
except ImportError:
    # Installed without a C compiler.
    HAS_NATIVE = False
else:
    HAS_NATIVE = True


@dataclass(slots=True, eq=False)
class NativeDispatch:
    """One that C has begun, of the table of that number; `taken_over` once it is Python's. C reads its
    tensors until it is finished."""

    number: int
    table: int
    x_TD: Tensor
    routing: Routing
    taken_over: Dispatch | None = None


@dataclass(frozen=True, slots=True)
class FlownCall:
    """A worker's part of a dispatch that is handed over; its `columns` have so many pairs."""

    rank: int
    started: float
    deadline: float
    columns: tuple[tuple[int, int], ...]
    lent: LentCall


@dataclass(frozen=True, slots=True)
class Flight:
    """A dispatch that is handed over. `begun` None: a step without the interpreter has begun it."""

    begun: NativeDispatch | None
    start_ns: int
    started: float
    hedge_at: float | None
    calls: Sequence[FlownCall]


class NativeWay:
    """Of one pool. `stop` and `take_counts`: any thread; the rest belongs to the thread that dispatches."""

    def __init__(self, options: PoolOptions, count: Callable[[Counts], None], *, wants_records: bool) -> None:
        """`count` takes what was counted under routes that are over."""
        is_narrow, is_exact = options.wire_dtype == "bfloat16", options.combine is Combine.EXACT
        self._native = _dispatch.dispatcher(
            options.epoch,
            is_narrow,
            is_exact,
            wants_records,
            options.num_slices,
            2 * LEAST_ROWS if options.splits_rows else 0,
            options.fixed_rows,
        )
        self._is_sliced = options.num_slices > 1
        self._count = count
        # For steps that run without the interpreter.
        self.in_c = _dispatch.layer_experts(self._native)
        self._begun: dict[int, NativeDispatch] = {}
        # What C has routes of. While it is paused the links are Python's.
        self._linked: LinkedRoutes | None = None
        self._is_paused = False
        self._tables: Sequence[LayerTable] = ()
        self._until = 0.0

    @property
    def num_flights(self) -> int:
        return _dispatch.num_flights(self._native)

    def begin(self, table: int, x_TD: Tensor, routing: Routing) -> NativeDispatch | None:
        """None: it is Python's. So are slices of bfloat16 rows: their sums are rounded when all are there."""
        weights_TK, ids_TK, dtype = routing.weights_TK, routing.expert_ids_TK, x_TD.dtype
        if (
            not (
                x_TD.is_cpu and x_TD.is_contiguous() and weights_TK.is_contiguous() and ids_TK.is_contiguous()
            )
            or not (dtype is torch.float32 or (dtype is torch.bfloat16 and not self._is_sliced))
            or weights_TK.dtype is not torch.float32
            or ids_TK.dtype is not torch.int64
        ):
            return None
        num_tokens, width = x_TD.shape
        number = _dispatch.begin(
            self._native,
            table,
            num_tokens,
            width,
            ids_TK.shape[1],
            x_TD.data_ptr(),
            dtype is torch.bfloat16,
            weights_TK.data_ptr(),
            ids_TK.data_ptr(),
        )
        if not number:
            return None
        begun = self._begun[number] = NativeDispatch(number, table, x_TD, routing)
        return begun

    def finish(self, begun: NativeDispatch) -> Tensor | None:
        """y_TD in x's dtype; None: it is Python's, and to be handed over if it is not."""
        if begun.taken_over is not None:
            return None
        y_TD = torch.empty_like(begun.x_TD)
        if not _dispatch.finish(self._native, begun.number, y_TD.data_ptr()):
            return None
        del self._begun[begun.number]
        return y_TD

    def stop(self) -> None:
        """Nothing begins until there are routes anew."""
        _dispatch.stop(self._native)

    def is_ready(self, linked: LinkedRoutes, tables: Sequence[LayerTable], speeds: WorkerSpeeds) -> bool:
        """Makes it so with these routes, where that can be; with `stop` since it is not."""
        if linked is not self._linked or tables is not self._tables:
            if self.num_flights or not _all_quiet(linked.links):
                return False
            self._route(linked, tables)
        elif self._is_paused:
            if not _all_quiet(linked.links):
                return False
            self._is_paused = False
            _dispatch.go(self._native)
        if time.monotonic() >= self._until:
            self._pace(linked, speeds)
        return True

    def hand_over(self) -> list[Flight]:
        """What is on its way, in its order; it is Python's from now on, and so are the links."""
        self.pause()
        flights = [
            Flight(self._begun.get(number), start_ns, started, hedge_at, [_flown(*call) for call in calls])
            for number, start_ns, started, hedge_at, calls in _dispatch.hand_over(self._native)
        ]
        self._begun.clear()
        return flights

    def pause(self) -> None:
        """Python may use the links from now on; C does when all are quiet again. Nothing is on its way."""
        self._is_paused = True
        self.stop()

    def take_counts(self) -> Counts:
        """Of dispatches that C has finished, since they were last taken."""
        return Counts(*_dispatch.take_counts(self._native))

    def take_records(self) -> list[DispatchRecord]:
        """The same ones, one by one."""
        return [
            DispatchRecord(
                layer,
                start_ns,
                start_ns + int(seconds * 1e9),
                seconds,
                combine_seconds,
                num_sent,
                num_received,
                rows,
                compute_seconds,
                {},
            )
            for (
                layer,
                start_ns,
                seconds,
                combine_seconds,
                num_sent,
                num_received,
                rows,
                compute_seconds,
            ) in _dispatch.take_records(self._native)
        ]

    def pause_if_noisy(self) -> None:
        """A link that has something on its way, or half of it, is Python's, and so are all."""
        if self._linked is not None and not _all_quiet(self._linked.links):
            self.pause()

    def _route(self, linked: LinkedRoutes, tables: Sequence[LayerTable]) -> None:
        self._count(self.take_counts())
        ranks = sorted(linked.links)
        place = {rank: number for number, rank in enumerate(ranks)}
        links = [
            (rank, frames.fileno()) for rank in ranks if (frames := linked.links[rank].frames) is not None
        ]
        layers = [
            (
                table.layer,
                table.slots_C,
                tuple(
                    [tuple([place[rank] for rank in ranks_c if rank in place]) for ranks_c in table.ranks_C]
                ),
            )
            for table in tables
        ]
        _dispatch.route(self._native, tuple(links), tuple(layers))
        _dispatch.go(self._native)
        self._linked, self._tables, self._until = linked, tables, 0.0
        self._is_paused = False

    def _pace(self, linked: LinkedRoutes, speeds: WorkerSpeeds) -> None:
        """What is decided of workers' speeds now and then holds until the next time."""
        for rank, size, seconds in _dispatch.take_samples(self._native):
            speeds.took(rank, size, seconds)
        costs = speeds.costs(linked.links)
        sizes = [(1 << size) >> 1 for size in range(_dispatch.NUM_SIZES)]
        hedges = [speeds.hedge_after(size) for size in sizes]
        self._until = speeds.until
        _dispatch.pace(
            self._native,
            tuple([costs.get(rank, -1.0) for rank in sorted(linked.links)]),
            tuple(map(speeds.timeout, sizes)),
            tuple([-1.0 if hedge is None else hedge for hedge in hedges]),
            self._until,
        )


def _all_quiet(links: Mapping[int, Link]) -> bool:
    return all(link.frames is not None and link.frames.is_quiet for link in links.values())


def _flown(
    rank: int,
    call_id: int,
    started: float,
    deadline: float,
    columns: tuple[tuple[int, int], ...],
    num_bytes: int,
    unsent: bytes,
    received: bytes,
    arrived: float,
) -> FlownCall:
    lent = LentCall(call_id, num_bytes, unsent, received, arrived)
    return FlownCall(rank, started, deadline, columns, lent)
