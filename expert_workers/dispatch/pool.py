"""ExpertPool: an ExpertBackend whose experts are in workers: cut, send, wait once, validate, combine.

Knows no process, no Ray and no socket. Routes say which worker holds which expert (`publish`); a Rescuer is
told of workers that are lost. `begin`, `finish`, `idle`, `switch`, `wait_for_lost`, `found`, `close` belong
to one thread; any may call the rest.
Shapes: T tokens, D d_model.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from expert_workers.dispatch.calls import Calls
from expert_workers.dispatch.combine import PairRows, Sums
from expert_workers.dispatch.current_routes import CurrentRoutes, Rescuer
from expert_workers.dispatch.dispatch import Dispatch, Sent
from expert_workers.dispatch.links import Links
from expert_workers.dispatch.native_way import HAS_NATIVE, Flight, NativeDispatch, NativeWay
from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.dispatch.pool_stats import (
    DispatchObserver,
    DispatchRecord,
    Exchange,
    PoolStats,
    StatsRecorder,
)
from expert_workers.dispatch.routes import Address, Routes
from expert_workers.dispatch.worker_speeds import TOO_SLOW, WorkerSpeeds
from expert_workers.transports.base import AnyTransport, Failure, FailureReason, Link, Pending, never
from expert_workers.wire import ExpertReply
from moe_model.errors import ExpertsLostError, WorldError
from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog, ExpertModule

_log = logging.getLogger(__name__)

# What `finish` takes.
Begun = Dispatch | NativeDispatch


class ExpertPool:
    """Runs the experts of a layer in workers; equal to LocalExperts over the same experts, to the last bit
    where their kernels are the same."""

    def __init__(
        self,
        catalog: Catalog,
        transport: AnyTransport,
        options: PoolOptions | None = None,
        rescuer: Rescuer | None = None,
        observer: DispatchObserver | None = None,
        here: AnyTransport | None = None,
    ) -> None:
        """`here` is for workers in this process, where the transport leads to others."""
        self._options = options or PoolOptions()
        self._is_sliced = self._options.num_slices > 1
        self._observer = observer
        self._plane = transport.plane()
        self._links = Links(transport, here or transport, self._options.call_timeout)
        self._routes = CurrentRoutes(catalog, self._links, self._options)
        self._routes.rescuer = rescuer
        self._speeds = WorkerSpeeds(self._options)
        self._calls = Calls(self._routes, self._speeds, self._options, self._adopt)
        self._stats = StatsRecorder()
        self._records: list[DispatchRecord] = []
        self._native: NativeWay | None = None
        if HAS_NATIVE and self._options.native:
            self._native = NativeWay(self._options, self._stats.add, wants_records=observer is not None)
            self._routes.on_change = self._native.stop

    @property
    def in_c(self) -> object | None:
        """As ExpertBackend: of moe_model/kernels/native/src/layer_experts.h."""
        return None if self._native is None else self._native.in_c

    def set_rescuer(self, rescuer: Rescuer) -> None:
        """Before the first dispatch."""
        self._routes.rescuer = rescuer

    def forward(self, table: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """As ExpertBackend. Raises ExpertsLostError when no worker holds an expert the rows need."""
        return self.finish(self.begin(table, x_TD, routing))

    def begin(self, table: int, x_TD: Tensor, routing: Routing) -> Begun:
        """As ExpertBackend; of experts in slices, of one of them. Raises ExpertsLostError."""
        native = self._native
        if native is not None and (begun := native.begin(table, x_TD, routing)) is not None:
            return begun
        start_ns, started = time.time_ns(), time.perf_counter()
        if self._routes.has_news:
            self._adopt()
        self._links.close_retired(time.monotonic())
        if self._speeds.is_owed:
            self._settle_owed()
        if (
            native is not None
            and self._is_native_ready(native)
            and (begun := native.begin(table, x_TD, routing)) is not None
        ):
            return begun
        self._pause_native()
        of_table = self._routes.tables[table]
        dispatch = Dispatch(table, of_table, x_TD, routing, self._options, start_ns, started)
        self._calls.begin(dispatch)
        return dispatch

    def finish(self, begun: Begun) -> Tensor:
        """As ExpertBackend; what a worker does not answer, others are asked for. Raises ExpertsLostError."""
        if isinstance(begun, NativeDispatch):
            assert self._native is not None
            if (y_TD := self._native.finish(begun)) is not None:
                return y_TD
            self._take_back()
            assert begun.taken_over is not None, "it was on its way"
            begun = begun.taken_over
        y_TD = self._finish(begun)
        # Of slices, sums are yet to come.
        return y_TD if self._is_sliced else y_TD.to(begun.device, begun.dtype)

    def take_over(self, table: int, x_TD: Tensor, routing: Routing) -> Begun:
        """For `finish`: what `in_c` has begun, with these rows, and could not finish."""
        return self.take_over_all(range(table, table + 1), x_TD, routing)[0]

    def take_over_all(self, tables: range, x_TD: Tensor, routing: Routing) -> list[Begun]:
        """The same of several tables; what it could not even begin of them is begun."""
        taken = self._take_back()[-len(tables) :]
        resumed = [self._resumed(n, x_TD, routing, *each) for n, each in zip(tables, taken, strict=False)]
        return [*resumed, *(self.begin(n, x_TD, routing) for n in tables[len(resumed) :])]

    def _finish(self, begun: Dispatch) -> Tensor:
        """In float32."""
        self._pause_native()
        exchange, combiner = Exchange(), begun.combiner()
        while begun.num_open:
            self._wait(begun, combiner, exchange)
            if begun.num_open and any(begun.todo_C):
                self._calls.send(begun)
        if begun.sent:
            self._speeds.owe(begun.sent)
        computed = time.perf_counter()
        y_TD = combiner.result()
        ended = time.perf_counter()
        slots_C, counts_C = self._routes.tables[begun.table].slots_C, begun.counts_C
        self._stats.dispatched(begun.layer, slots_C, counts_C, ended - begun.started, exchange)
        if self._observer is not None:
            record = exchange.record(begun.layer, begun.start_ns, ended - begun.started, ended - computed)
            self._collect_records()
            self._records.append(record)
        return y_TD

    def tell_dispatches(self) -> None:
        """A step is over: the observer is told of its dispatches."""
        if self._observer is not None:
            self._collect_records()
            records, self._records = self._records, []
            if records:
                self._observer.dispatched(records)

    def idle(self) -> None:
        """For when nothing is dispatched: takes in news, and finds out which links are closed."""
        if self._routes.has_news:
            self._adopt()
        self._take_back()
        self._links.close_retired()
        self._settle_owed()
        for link in self._routes.linked.links.values():
            link.look()
            if link.failure is not None:
                self._tell(link)
        if self._native is not None:
            self._native.pause_if_noisy()

    def connect(self, address: Address, timeout: float) -> None:
        """Before routes name the address. Blocks for at most `timeout` seconds; any thread but the one that
        dispatches. Raises WorkerFailureError."""
        self._links.open(address, timeout)

    def disconnect(self, address: Address) -> None:
        """No routes will name the address, unless they have already. Any thread."""
        self._links.forget(address)

    def publish(self, routes: Routes) -> None:
        """What counts from the next dispatch on; `connect` has been called for each address. Any thread."""
        self._routes.publish(routes)

    def await_news(self, timeout: float) -> None:
        """Waits until something is published, at most so many seconds."""
        self._routes.await_news(timeout)

    def give_up(self, why: WorldError) -> None:
        """The workers are no longer looked after: what a step lacks from now on is not waited for, it fails
        with this. Any thread; the first counts."""
        self._routes.give_up(why)

    def switch(self, catalog: Catalog) -> None:
        """What the routers' columns stand for from now on. Between two steps."""
        if self._routes.has_news:
            self._adopt()
        self._take_back()
        self._routes.switch(catalog)

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        """The modules that no worker holds whose link still works. Any thread may ask."""
        return self._routes.missing_experts()

    def wait_for_lost(self, timeout: float) -> bool:
        """After an ExpertsLostError: waits until something is published, at most so many seconds. False where
        the time for that is over, or there is none."""
        left = self._routes.patience.left
        self._routes.await_news(min(timeout, left))
        return left > 0

    def found(self) -> None:
        """A step has lacked nothing: the next loss is waited for anew."""
        self._routes.patience.end()

    @property
    def adopted(self) -> int:
        """The version of the routes in use."""
        return self._routes.linked.routes.version

    def stats(self) -> PoolStats:
        self._count_native()
        return self._stats.snapshot()

    def loads(self) -> Mapping[ExpertKey, int]:
        """Rows by module, since the beginning."""
        return self.stats().loads

    def costs(self) -> Mapping[int, float]:
        """How many times longer than the quickest each worker takes for a row."""
        return dict.fromkeys(self._routes.linked.links, TOO_SLOW) | dict(self._speeds.last_costs)

    def close(self) -> None:
        """Ends all links. Idempotent. The workers stay; they belong to the fleet that started them."""
        self._take_back()
        if self._native is not None:
            self._native.stop()
        self._links.close()

    def _wait(self, begun: Dispatch, combiner: Sums | PairRows, exchange: Exchange) -> None:
        """Until all is answered, or something has to be sent again."""
        pendings, deadline = [sent.pending for sent in begun.sent], _deadline(begun.sent)
        if begun.hedge_at is None:
            self._plane.wait(pendings, deadline)
            self._take(begun, combiner, exchange)
        else:
            self._plane.wait(pendings, min(begun.hedge_at, deadline), never)
            self._take(begun, combiner, exchange)
            if begun.num_open and not any(begun.todo_C):
                self._wait_hedged(begun, combiner, exchange)
        if begun.num_open and not any(begun.todo_C):
            self._expire(begun, exchange)

    def _wait_hedged(self, begun: Dispatch, combiner: Sums | PairRows, exchange: Exchange) -> None:
        num_calls = self._calls.hedge(begun)
        self._stats.hedged(num_calls)
        exchange.num_hedged += num_calls

        def is_enough() -> bool:
            self._take(begun, combiner, exchange)
            return not begun.num_open or any(begun.todo_C)

        self._plane.wait([sent.pending for sent in begun.sent], _deadline(begun.sent), is_enough)
        self._take(begun, combiner, exchange)

    def _take(self, begun: Dispatch, combiner: Sums | PairRows, exchange: Exchange) -> None:
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
                combiner.add(sent.part, checked.y_ND)
                begun.answered(sent.part)
            else:
                begun.put_back(sent.part)

    def _replied(self, sent: Sent, reply: ExpertReply, exchange: Exchange) -> None:
        self._speeds.replied(sent)
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
        """An answer that comes late is not used; a worker that does not answer at all is lost."""
        for sent in self._speeds.settle_owed():
            if sent.link.failure is None:
                late = _late(sent.link.rank)
                sent.link.fail(late.reason, late.message)
            self._tell(sent.link)

    def _tell(self, link: Link) -> None:
        """Of a link that has failed; once."""
        failure, rank = link.failure, link.rank
        assert failure is not None, "it has failed"
        address = self._routes.drop(link)
        if address is None:
            return
        self._speeds.forget(rank)
        self._stats.failed(rank, failure.reason)
        if self._routes.rescuer is None:
            _log.warning("worker %d lost (%s): %s", rank, failure.reason, failure.message)
        else:
            self._routes.rescuer.lost(address, failure)

    def _is_native_ready(self, native: NativeWay) -> bool:
        is_ready = native.is_ready(self._routes.linked, self._routes.tables, self._speeds)
        if self._routes.has_news:
            # Published meanwhile, and perhaps before C was told that it may begin.
            native.stop()
        return is_ready

    def _pause_native(self) -> None:
        """From now on Python sends, reads and fails links: C and Python never use one at the same time."""
        self._take_back()
        if self._native is not None:
            self._native.pause()

    def _take_back(self) -> list[tuple[Flight, list[Pending]]]:
        """What C has on its way is Python's from now on; so are the links, until nothing is."""
        if self._native is None or not self._native.num_flights:
            return []
        flights = self._native.hand_over()
        links = self._routes.linked.links
        pendings: dict[int, Iterator[Pending]] = {}
        for rank in {call.rank for flight in flights for call in flight.calls}:
            frames = links[rank].frames
            assert frames is not None, "it was lent"
            lent = [call.lent for flight in flights for call in flight.calls if call.rank == rank]
            pendings[rank] = iter(frames.take_back(lent))
        taken = [(flight, [next(pendings[call.rank]) for call in flight.calls]) for flight in flights]
        for flight, its_pendings in taken:
            if (begun := flight.begun) is not None:
                begun.taken_over = self._resumed(begun.table, begun.x_TD, begun.routing, flight, its_pendings)
        return taken

    def _resumed(
        self, table: int, x_TD: Tensor, routing: Routing, flight: Flight, pendings: Sequence[Pending]
    ) -> Dispatch:
        of_table, started = self._routes.tables[table], flight.started
        dispatch = Dispatch(table, of_table, x_TD, routing, self._options, flight.start_ns, started)
        self._calls.resume(dispatch, flight, pendings)
        return dispatch

    def _count_native(self) -> None:
        if self._native is not None:
            self._stats.add(self._native.take_counts())

    def _collect_records(self) -> None:
        if self._native is not None:
            self._records += self._native.take_records()

    def _adopt(self) -> None:
        self._take_back()
        for link in self._routes.adopt():
            self._tell(link)
        self._speeds.refresh()


def _deadline(sent: Sequence[Sent]) -> float:
    return min([each.deadline for each in sent], default=0.0)


def _late(rank: int) -> Failure:
    return Failure(FailureReason.LATE, f"worker {rank}: no answer in time")
