"""Calls: gives a dispatch's rows to workers, and what takes too long to others as well.

Shapes: C columns of a layer's router.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from expert_workers.dispatch.assign import Segments, assign, pieces
from expert_workers.dispatch.current_routes import CurrentRoutes
from expert_workers.dispatch.dispatch import Dispatch, Sent
from expert_workers.dispatch.native_way import Flight
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.split import RowSlice, cut
from expert_workers.dispatch.worker_speeds import TOO_SLOW, WorkerSpeeds
from expert_workers.transports.base import Pending
from expert_workers.wire import ExpertCall, ReplyForm


class Calls:
    """Of one pool. Belongs to the thread that dispatches."""

    def __init__(
        self, routes: CurrentRoutes, speeds: WorkerSpeeds, options: PoolOptions, adopt: Callable[[], None]
    ) -> None:
        """`adopt` takes in what was published while a step waited for holders."""
        self._routes = routes
        self._speeds = speeds
        self._options = options
        self._adopt = adopt
        self._assign = partial(assign, fixed_rows=options.fixed_rows)
        self._call_ids = count(1)

    def begin(self, dispatch: Dispatch) -> None:
        """As `send`, for the first time."""
        links, table = self._routes.linked.links, self._routes.tables[dispatch.table]
        if self._options.splits_rows and table.has_choice:
            sizes = pieces(table.ranks_C, dispatch.todo_C, self._speeds.costs(links))
            if sizes is not None:
                dispatch.split(sizes)
        self.send(dispatch)

    def send(self, dispatch: Dispatch) -> None:
        """Sends each worker its part of what is to be done. Raises ExpertsLostError."""
        routes = self._routes
        table = routes.tables[dispatch.table]
        costs = self._speeds.costs(routes.linked.links)
        segments, lost = self._assign(dispatch.holders(table), dispatch.todo_C, costs)
        if lost:
            segments = self._hard_to_place(dispatch)
        for rank, columns in segments.items():
            self._send_one(dispatch, rank, columns)
            for column, _ in columns:
                dispatch.todo_C[column] = 0
        dispatch.hedge_at = None
        if table.has_choice:
            hedge_after = self._speeds.hedge_after(max(map(self._speeds.size_of, dispatch.sent), default=0))
            dispatch.hedge_at = None if hedge_after is None else time.monotonic() + hedge_after

    def hedge(self, dispatch: Dispatch) -> int:
        """Asks other holders as well for what takes unusually long; returns how many calls that made."""
        table = self._routes.tables[dispatch.table]
        late = [sent for sent in dispatch.sent if sent.pending.outcome is None]
        slow = {sent.link.rank for sent in late}
        costs = {rank: cost for rank, cost in self._costs_of_all().items() if rank not in slow}
        num_calls, holders = 0, dispatch.holders(table)
        # One by one: an answer counts whole or not at all, and each of these is late for itself.
        for sent in late:
            counts = [0] * len(holders)
            for column, rows in sent.part.segments:
                if dispatch.open_C[column] and any(rank in costs for rank in holders[column]):
                    counts[column] = rows
            segments, _ = self._assign(holders, counts, costs)
            num_calls += len(segments)
            for rank, columns in segments.items():
                self._send_one(dispatch, rank, columns)
        return num_calls

    def _hard_to_place(self, dispatch: Dispatch) -> dict[int, Segments]:
        """Workers that are slow or behind must do where there are no others; then any that can be found."""
        while True:
            table = self._routes.tables[dispatch.table]
            segments, lost = self._assign(dispatch.holders(table), dispatch.todo_C, self._costs_of_all())
            if not lost:
                return segments
            self._routes.await_holders(table, sorted({dispatch.columns[each] for each in lost}))
            if self._routes.has_news:
                self._adopt()

    def _costs_of_all(self) -> dict[int, float]:
        """What a row costs, also with those that usually get none."""
        links = self._routes.linked.links
        alive = {rank: TOO_SLOW for rank, link in links.items() if link.failure is None}
        return alive | self._speeds.costs(links)

    def resume(self, dispatch: Dispatch, flight: Flight, pendings: Sequence[Pending]) -> None:
        """Takes over what C has sent of a dispatch; each pending is of a call, in their order."""
        for call, pending in zip(flight.calls, pendings, strict=True):
            part, made = self._call(dispatch, call.columns, call.lent.call_id)
            link = self._routes.linked.links[call.rank]
            dispatch.sent.append(Sent(link, part, made, pending, call.started, call.deadline))
            for column, _ in call.columns:
                dispatch.todo_C[column] = 0
        dispatch.hedge_at = flight.hedge_at

    def _send_one(self, dispatch: Dispatch, rank: int, columns: Sequence[tuple[int, int]]) -> None:
        part, call = self._call(dispatch, columns, next(self._call_ids))
        link = self._routes.linked.links[rank]
        deadline = time.monotonic() + self._speeds.timeout(
            self._speeds.size(len(part.weights_P), len(columns))
        )
        started = time.perf_counter()
        dispatch.sent.append(Sent(link, part, call, link.send(call), started, deadline))

    def _call(
        self, dispatch: Dispatch, columns: Sequence[tuple[int, int]], call_id: int
    ) -> tuple[RowSlice, ExpertCall]:
        part = cut(dispatch.x_TD, dispatch.pairs, columns)
        table = self._routes.tables[dispatch.table]
        call = ExpertCall(
            call_id,
            self._options.epoch,
            dispatch.layer,
            dispatch.slots(table, part),
            part.row_index,
            part.weights_P if dispatch.form is ReplyForm.SUM else None,
            part.x_RD,
            dispatch.wire_dtype,
            dispatch.form,
        )
        return part, call
