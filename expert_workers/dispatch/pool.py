"""ExpertPool: an ExpertBackend whose experts are in workers: cut, send, wait once, validate, combine.

Knows no process, no Ray and no socket. What holds which expert it is told (`publish`), whom it has lost it
tells (`Rescuer`). `begin`, `finish`, `idle`, `switch`, `wait_for_lost`, `found` belong to one thread; any may
call the rest.
Shapes: T tokens, D d_model, C columns of a layer's router.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Protocol

from torch import Tensor

from expert_workers.dispatch.assign import assign
from expert_workers.dispatch.combine import PairRows, Sums
from expert_workers.dispatch.dispatch import Dispatch, Sent
from expert_workers.dispatch.links import LinkedRoutes, Links
from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.dispatch.patience import Patience
from expert_workers.dispatch.pool_stats import Exchange, PoolObserver, PoolStats, StatsRecorder
from expert_workers.dispatch.routes import Address, Routes, tables
from expert_workers.dispatch.split import cut
from expert_workers.dispatch.worker_speeds import TOO_SLOW, Standing
from expert_workers.transports.base import AnyTransport, Failure, FailureReason, Link, never
from expert_workers.wire import ExpertCall, ExpertReply, ReplyForm
from moe_model.errors import ExpertsLostError, WorldError
from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog, ExpertModule

_log = logging.getLogger(__name__)


class Rescuer(Protocol):
    """Who looks after the workers. Any thread may call; nothing here waits."""

    def lost(self, address: Address, failure: Failure) -> None:
        """The link to this address has failed."""

    def rescue(self, keys: Sequence[ExpertKey]) -> None:
        """A step waits for these: nobody holds them."""


class ExpertPool:
    """Runs the experts of a layer in workers; equal to LocalExperts over the same experts, to the last bit
    where their kernels are the same."""

    def __init__(
        self,
        catalog: Catalog,
        transport: AnyTransport,
        options: PoolOptions | None = None,
        rescuer: Rescuer | None = None,
        observer: PoolObserver | None = None,
        here: AnyTransport | None = None,
    ) -> None:
        """`here` is for workers in this process, where the transport leads to others."""
        self._catalog = catalog
        self._plane = transport.plane()
        self._options = options or PoolOptions()
        self._links = Links(transport, here or transport, self._options.call_timeout)
        self._rescuer = rescuer
        self._observer = observer
        self._stats = StatsRecorder()
        self._standing = Standing(self._options)
        self._call_ids = count(1)
        self._linked = LinkedRoutes()
        self._tables = tables(catalog, self._linked.routes)
        self._changed = threading.Condition()
        self._next: LinkedRoutes | None = None
        self._patience = Patience(self._options)
        self._over: WorldError | None = None
        self._missing: tuple[object, tuple[ExpertModule, ...]] = (None, ())

    def set_rescuer(self, rescuer: Rescuer) -> None:
        """Before the first dispatch."""
        self._rescuer = rescuer

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """As ExpertBackend. Raises ExpertsLostError when nobody holds an expert the rows need."""
        return self.finish(self.begin(layer, x_TD, routing))

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Dispatch:
        """As ExpertBackend. Raises ExpertsLostError."""
        start_ns, started = time.time_ns(), time.perf_counter()
        if self._next is not None:
            self._adopt()
        self._links.close_retired(time.monotonic())
        if self._standing.is_owed:
            self._settle_owed()
        num_columns = len(self._tables[layer].slots_C)
        dispatch = Dispatch(layer, x_TD, routing, num_columns, self._options, start_ns, started)
        self._send(dispatch)
        return dispatch

    def finish(self, begun: Dispatch) -> Tensor:
        """As ExpertBackend; what a worker does not answer, others are asked for. Raises ExpertsLostError."""
        exchange, assembly = Exchange(), begun.assembly()
        while begun.num_open:
            self._wait(begun, assembly, exchange)
            if begun.num_open and any(begun.todo_C):
                self._send(begun)
        if begun.sent:
            self._standing.owe(begun.sent)
        computed = time.perf_counter()
        y_TD = assembly.result().to(begun.device, begun.dtype)
        ended = time.perf_counter()
        slots_C, counts_C = self._tables[begun.layer].slots_C, begun.pairs.counts_E
        self._stats.dispatched(begun.layer, slots_C, counts_C, ended - begun.started, exchange)
        if self._observer is not None:
            record = exchange.record(begun.layer, begun.start_ns, ended - begun.started, ended - computed)
            self._observer.dispatched(record)
        return y_TD

    def idle(self) -> None:
        """For when nothing is dispatched: takes in news, and finds out which links are closed."""
        if self._next is not None:
            self._adopt()
        self._links.close_retired()
        self._settle_owed()
        for link in self._linked.links.values():
            link.look()
            if link.failure is not None:
                self._tell(link)

    def connect(self, address: Address, timeout: float) -> None:
        """Before routes name the address. Blocks for at most `timeout` seconds; any thread but the one that
        dispatches. Raises WorkerFailureError."""
        self._links.open(address, timeout)

    def publish(self, routes: Routes) -> None:
        """What counts from the next dispatch on. Any thread."""
        with self._changed:
            linked = self._links.linked(routes)
            if self._next is not None:
                self._links.retire(self._next.routes, routes, time.monotonic())
            self._next = linked
            self._changed.notify_all()

    def await_news(self, timeout: float) -> None:
        """Waits until something is published, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._next is not None or self._over is not None, timeout)

    def give_up(self, why: WorldError) -> None:
        """Nobody looks after the workers any more: what a step lacks from now on is not waited for, it fails
        with this. Any thread; the first counts."""
        with self._changed:
            self._over = self._over or why
            self._changed.notify_all()

    def wait_for_lost(self, timeout: float) -> bool:
        """After an ExpertsLostError: waits until something is published, at most so many seconds. False where
        the time for that is over, or there is none."""
        left = self._patience.left
        self.await_news(min(timeout, left))
        return left > 0

    def found(self) -> None:
        """A step has lacked nothing: the next loss is waited for anew."""
        self._patience.end()

    def switch(self, catalog: Catalog) -> None:
        """What the routers' columns stand for from now on. Between two steps."""
        self._catalog = catalog
        if self._next is not None:
            self._adopt()
        self._tables = tables(catalog, self._linked.routes)

    @property
    def adopted(self) -> int:
        """The version of the routes in use."""
        return self._linked.routes.version

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        """The modules that nobody holds whose link still works. Any thread may ask."""
        linked, catalog = looked_at = (self._next or self._linked, self._catalog)
        if looked_at != self._missing[0]:
            self._missing = looked_at, tuple(m for m in catalog.modules if not linked.is_live(m.key))
        return self._missing[1]

    def stats(self) -> PoolStats:
        return self._stats.snapshot()

    def loads(self) -> Mapping[ExpertKey, int]:
        """Rows by module, since the beginning."""
        return self._stats.snapshot().loads

    def costs(self) -> Mapping[int, float]:
        """How many times longer than the quickest each worker takes for a row."""
        return dict.fromkeys(self._linked.links, TOO_SLOW) | dict(self._standing.last_costs)

    def close(self) -> None:
        """Ends all links. Idempotent. The workers stay; they belong to the fleet that started them."""
        self._links.close()

    def _send(self, dispatch: Dispatch) -> None:
        """Sends each worker its part of what is to be done."""
        table = self._tables[dispatch.layer]
        segments, lost = assign(table.ranks_C, dispatch.todo_C, self._standing.costs(self._linked.links))
        if lost:
            segments = self._hard_to_place(dispatch)
        for rank, columns in segments.items():
            self._send_one(dispatch, rank, columns)
            for column, _ in columns:
                dispatch.todo_C[column] = 0
        dispatch.hedge_at = None
        if table.has_choice:
            hedge_after = self._standing.hedge_after(max([sent.num_pairs for sent in dispatch.sent]))
            dispatch.hedge_at = None if hedge_after is None else time.monotonic() + hedge_after

    def _hard_to_place(self, dispatch: Dispatch) -> dict[int, list[tuple[int, int]]]:
        """Workers that are slow or behind must do where there are no others; then whoever can be found."""
        while True:
            table = self._tables[dispatch.layer]
            segments, lost = assign(table.ranks_C, dispatch.todo_C, self._costs_of_all())
            if not lost:
                return segments
            self._await_holders(dispatch.layer, lost)

    def _costs_of_all(self) -> dict[int, float]:
        """What a row costs, also with those that usually get none."""
        links = self._linked.links
        alive = {rank: TOO_SLOW for rank, link in links.items() if link.failure is None}
        return alive | self._standing.costs(links)

    def _await_holders(self, layer: int, columns: Sequence[int]) -> None:
        """Returns when something has changed. Raises ExpertsLostError where that may take longer."""
        if self._over is not None:
            raise self._over.with_traceback(None)
        if self._rescuer is None or not self._options.on_loss.waits:
            raise self._lost_error(layer, columns)
        self._patience.begin()
        self._rescuer.rescue([(layer, self._tables[layer].slots_C[column]) for column in columns])
        if (left := self._patience.left_inside) <= 0:
            raise self._lost_error(layer, columns)
        self.await_news(left)
        if self._next is not None:
            self._adopt()

    def _lost_error(self, layer: int, columns: Sequence[int]) -> ExpertsLostError:
        experts = [self._catalog.columns[layer][column].expert for column in columns]
        shown = ", ".join(map(str, experts[:8])) + (", ..." if len(experts) > 8 else "")
        ranks = sorted({rank for column in columns for rank in self._tables[layer].ranks_C[column]})
        lost = f" (lost: worker {', '.join(map(str, ranks))})" if ranks else ""
        return ExpertsLostError(f"layer {layer}: no live worker holds expert {shown}{lost}", tuple(ranks))

    def _send_one(self, dispatch: Dispatch, rank: int, columns: Sequence[tuple[int, int]]) -> None:
        part = cut(dispatch.x_TD, dispatch.pairs, columns)
        table, options = self._tables[dispatch.layer], self._options
        segments = part.segments
        if not table.is_plain:
            segments = tuple([(table.slots_C[column], rows) for column, rows in segments])
        call = ExpertCall(
            next(self._call_ids),
            options.epoch,
            dispatch.layer,
            segments,
            part.row_index,
            part.weights_P if dispatch.form is ReplyForm.SUM else None,
            part.x_RD,
            dispatch.wire_dtype,
            dispatch.form,
        )
        link = self._linked.links[rank]
        deadline = time.monotonic() + self._standing.timeout(len(part.weights_P))
        started = time.perf_counter()
        dispatch.sent.append(Sent(link, part, call, link.send(call), started, deadline))

    def _wait(self, begun: Dispatch, assembly: Sums | PairRows, exchange: Exchange) -> None:
        """Until all is answered, or something has to be sent again."""
        pendings, deadline = [sent.pending for sent in begun.sent], _deadline(begun.sent)
        if begun.hedge_at is None:
            self._plane.wait(pendings, deadline)
            self._take(begun, assembly, exchange)
        else:
            self._plane.wait(pendings, min(begun.hedge_at, deadline), never)
            self._take(begun, assembly, exchange)
            if begun.num_open and not any(begun.todo_C):
                self._wait_hedged(begun, assembly, exchange)
        if begun.num_open and not any(begun.todo_C):
            self._expire(begun, exchange)

    def _wait_hedged(self, begun: Dispatch, assembly: Sums | PairRows, exchange: Exchange) -> None:
        self._hedge(begun, exchange)

        def is_enough() -> bool:
            self._take(begun, assembly, exchange)
            return not begun.num_open or any(begun.todo_C)

        self._plane.wait([sent.pending for sent in begun.sent], _deadline(begun.sent), is_enough)
        self._take(begun, assembly, exchange)

    def _hedge(self, begun: Dispatch, exchange: Exchange) -> None:
        """Asks other holders as well for what takes unusually long."""
        table = self._tables[begun.layer]
        late = [sent for sent in begun.sent if sent.pending.outcome is None]
        slow = {sent.link.rank for sent in late}
        costs = {rank: cost for rank, cost in self._costs_of_all().items() if rank not in slow}
        # One by one: an answer counts whole or not at all, and each of these is late for itself.
        for sent in late:
            counts = [0] * len(table.slots_C)
            for column, rows in sent.part.segments:
                if begun.open_C[column] and any(rank in costs for rank in table.ranks_C[column]):
                    counts[column] = rows
            segments, _ = assign(table.ranks_C, counts, costs)
            self._stats.hedged(len(segments))
            exchange.num_hedged += len(segments)
            for rank, columns in segments.items():
                self._send_one(begun, rank, columns)

    def _take(self, begun: Dispatch, assembly: Sums | PairRows, exchange: Exchange) -> None:
        """Takes over what has come; what failed is put back."""
        settled = [sent for sent in begun.sent if sent.pending.outcome is not None]
        if not settled:
            return
        if len(settled) == len(begun.sent):
            begun.sent = []
        else:
            begun.sent = [sent for sent in begun.sent if sent.pending.outcome is None]
        for sent in settled:
            checked = sent.checked()
            if isinstance(checked, Failure):
                self._failed(sent, checked, exchange)
                begun.put_back(sent.part)
                continue
            self._replied(sent, checked, exchange)
            if begun.is_open(sent.part):
                assembly.add(sent.part, checked.y_ND)
                begun.answered(sent.part)
            else:
                begun.put_back(sent.part)

    def _replied(self, sent: Sent, reply: ExpertReply, exchange: Exchange) -> None:
        self._standing.replied(sent)
        sizes = sent.call.x_RD.nbytes, reply.y_ND.nbytes
        exchange.replied(sent.link.rank, sent.num_pairs, reply.compute_seconds, *sizes)

    def _failed(self, sent: Sent, failure: Failure, exchange: Exchange) -> None:
        sent.link.fail(failure.reason, failure.message)
        exchange.failed((sent.link.failure or failure).reason)
        self._tell(sent.link)
        if self._options.on_loss is OnLoss.FAIL:
            raise ExpertsLostError(failure.message, (sent.link.rank,))

    def _expire(self, begun: Dispatch, exchange: Exchange) -> None:
        """Gives up the workers that have had their time."""
        now = time.monotonic()
        late = [sent for sent in begun.sent if sent.pending.outcome is None and now >= sent.deadline]
        begun.sent = [sent for sent in begun.sent if sent not in late]
        for sent in late:
            self._failed(sent, _late(sent.link.rank), exchange)
            begun.put_back(sent.part)

    def _settle_owed(self) -> None:
        """What is answered late is not used; who does not answer at all is lost."""
        for sent in self._standing.settle_owed():
            if sent.link.failure is None:
                late = _late(sent.link.rank)
                sent.link.fail(late.reason, late.message)
            self._tell(sent.link)

    def _tell(self, link: Link) -> None:
        """Of a link that has failed; once."""
        failure, rank = link.failure, link.rank
        assert failure is not None, "it has failed"
        if self._linked.links.get(rank) is not link:
            return
        address = self._linked.routes.addresses[rank]
        self._linked = self._linked.without(rank)
        self._standing.forget(rank)
        self._stats.failed(rank, failure.reason)
        if self._rescuer is None:
            _log.warning("worker %d lost (%s): %s", rank, failure.reason, failure.message)
        else:
            self._rescuer.lost(address, failure)

    def _adopt(self) -> None:
        with self._changed:
            linked, self._next = self._next, None
        assert linked is not None, "something was published"
        self._links.retire(self._linked.routes, linked.routes, time.monotonic())
        self._linked = linked
        for link in linked.links.values():
            if link.failure is not None:
                self._tell(link)
        self._tables = tables(self._catalog, self._linked.routes)
        self._standing.refresh()
        if self._patience.left <= 0 and all(self._linked.is_live(key) for key in self._catalog.keys):
            # Requests that waited in vain were told; those that come now have all the time there is.
            self._patience.end()


def _deadline(sent: Sequence[Sent]) -> float:
    return min([each.deadline for each in sent], default=0.0)


def _late(rank: int) -> Failure:
    return Failure(FailureReason.LATE, f"worker {rank}: no answer in time")
