"""Calls as events: workers that are shared, slow or lost; replicas, hedging and patience of the product.

Follows `expert_workers.dispatch.calls` and `pool`: who is asked, when a replica is asked as well, and for how
long lost experts are waited for, is decided by the product's own functions over the simulation's clock.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event

from expert_workers.dispatch.assign import Segments, assign, pieces
from expert_workers.dispatch.dispatch import Sent
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.patience import Patience
from expert_workers.dispatch.worker_speeds import TOO_SLOW, WorkerSpeeds
from expert_workers.transports.base import Failure, FailureReason, Link
from expert_workers.wire import ExpertReply
from moe_model.errors import ExpertsLostError
from scaling.costs.base import NodeCosts
from scaling.simulation.machine import Cores, Group
from scaling.simulation.messages import Messages
from scaling.simulation.network import Network
from scaling.simulation.split import Split
from scaling.simulation.workers import SimWorker

_REPLY = ExpertReply(0, 0, 0, 0, np.zeros((0, 0), np.float32), 0.0)


@dataclass
class Call:
    """As `dispatch.Sent` and its `Pending`, in one. Times are the simulation's."""

    link: SimWorker
    segments: Segments
    num_pairs: int
    started: float
    deadline: float
    bytes_out: float
    bytes_back: float
    outcome: ExpertReply | Failure | None = None
    arrived: float = 0.0
    at_worker: float = 0.0
    begun: float = 0.0
    done: float = 0.0

    @property
    def pending(self) -> "Call":
        return self

    @property
    def num_columns(self) -> int:
        return len(self.segments)


@dataclass
class Flight:
    """A dispatch on its way. `columns`: of which expert each piece is."""

    layer: int
    num_tokens: int
    columns: Sequence[int]
    todo_C: list[int]
    started: float
    sent: list[Call] = field(default_factory=list)
    open_C: list[int] = field(default_factory=list)
    hedge_at: float | None = None
    last: Call | None = None

    @property
    def is_open(self) -> bool:
        return any(self.open_C)


class CallPool:
    """The workers as one coordinator has them. `rescue` is told of a worker that did not answer in time."""

    def __init__(
        self,
        env: Environment,
        options: PoolOptions,
        network: Network,
        messages: Messages,
        workers: list[SimWorker],
        here: str,
        costs: NodeCosts,
        cores: Cores,
        group: Group,
        rescue: Callable[[SimWorker], None],
    ) -> None:
        self._env, self._options, self._network, self._messages = env, options, network, messages
        self._workers, self._here, self._costs = workers, here, costs
        self._cores, self._group, self._rescue = cores, group, rescue
        self.speeds = WorkerSpeeds(options, lambda: float(env.now))
        self.patience = Patience(options, lambda: float(env.now))
        self._held: Mapping[int, list[tuple[int, ...]]] = {}
        self._news = env.event()
        self._changed = env.event()
        self._flights: list[Flight] = []
        self.num_bytes = [0.0, 0.0]
        self.num_hedged = self.num_pairs = 0
        self.can_fail = False

    def publish(self, held: Mapping[int, list[tuple[int, ...]]]) -> None:
        """By layer, the ranks of each expert, from now on."""
        self._held = held
        self.speeds.refresh()
        news, self._news = self._news, self._env.event()
        news.succeed()

    @property
    def _links(self) -> dict[int, Link]:
        return {worker.rank: cast("Link", worker) for worker in self._workers}

    def begin(self, layer: int, num_tokens: int, rows_E: NDArray[Any]) -> Generator[Event, Any, Flight]:
        """Raises ExpertsLostError."""
        self._settle_owed()
        counts, holders = rows_E.tolist(), self._held[layer]
        columns: list[int] = list(range(len(counts)))
        if self._options.splits_rows and any(len(ranks) > 1 for ranks in holders):
            cut = pieces(holders, counts, self.speeds.costs(self._links))
            if cut is not None:
                columns = [column for column, parts in enumerate(cut) for _ in parts]
                counts = [rows for parts in cut for rows in parts]
        flight = Flight(layer, num_tokens, columns, list(counts), self._env.now, open_C=list(counts))
        self._flights.append(flight)
        yield from self._send(flight)
        return flight

    def finish(self, flight: Flight, split: Split) -> Generator[Event, Any, None]:
        """Until every row is answered. Raises ExpertsLostError."""
        began = self._env.now
        try:
            while flight.is_open:
                yield from self._wait(flight)
                yield from self._take(flight)
                if flight.is_open and any(flight.todo_C):
                    yield from self._send(flight)
        finally:
            if flight in self._flights:
                self._flights.remove(flight)
        if flight.sent:
            self.speeds.owe(cast("list[Sent]", flight.sent))
        split.add_wait(self._way(flight), self._env.now - began)

    def found(self) -> None:
        self.patience.end()

    def died(self, worker: SimWorker) -> None:
        """Its streams have been closed: what it had to answer has failed."""
        failure = Failure(FailureReason.DIED, f"worker {worker.rank}: gone")
        self.speeds.forget(worker.rank)
        for flight in self._flights:
            for call in flight.sent:
                if call.link is worker and call.outcome is None:
                    call.outcome = failure
        self._tell()

    def wait_for_lost(self, timeout: float) -> Generator[Event, Any, bool]:
        """As the product's pool: False where the time for lost experts is over."""
        # The step has failed: what it has begun is not waited for.
        self._flights.clear()
        left = self.patience.left
        if left > 0:
            yield self._news | self._env.timeout(min(timeout, left))
        return left > 0

    def _assign(
        self, holders: Sequence[tuple[int, ...]], counts: Sequence[int], costs: Mapping[int, float]
    ) -> tuple[dict[int, Segments], list[int]]:
        return assign(holders, counts, costs, self._options.fixed_rows)

    def _holders(self, flight: Flight) -> list[tuple[int, ...]]:
        held = self._held[flight.layer]
        return [held[column] for column in flight.columns]

    def _send(self, flight: Flight) -> Generator[Event, Any, None]:
        costs = self.speeds.costs(self._links)
        segments, lost = self._assign(self._holders(flight), flight.todo_C, costs)
        if lost:
            segments = yield from self._hard_to_place(flight)
        for rank, columns in segments.items():
            yield from self._send_one(flight, rank, columns)
            for column, _ in columns:
                flight.todo_C[column] = 0
        flight.hedge_at = None
        if any(len(ranks) > 1 for ranks in self._held[flight.layer]):
            after = self.speeds.hedge_after(max(map(self._size_of, flight.sent), default=0))
            flight.hedge_at = None if after is None else self._env.now + after

    def _size_of(self, call: Call) -> int:
        return self.speeds.size_of(cast("Sent", call))

    def _hard_to_place(self, flight: Flight) -> Generator[Event, Any, dict[int, Segments]]:
        while True:
            segments, lost = self._assign(self._holders(flight), flight.todo_C, self._costs_of_all())
            if not lost:
                return segments
            self.patience.begin()
            left = self.patience.left_inside
            if left <= 0:
                raise ExpertsLostError("no worker holds an expert that rows need", ())
            yield self._news | self._env.timeout(left)

    def _costs_of_all(self) -> dict[int, float]:
        links = self._links
        alive = {rank: TOO_SLOW for rank, link in links.items() if link.failure is None}
        return alive | self.speeds.costs(links)

    def _send_one(self, flight: Flight, rank: int, columns: Segments) -> Generator[Event, Any, None]:
        pairs, most = sum(count for _, count in columns), max(count for _, count in columns)
        pairs_W, segments_W = np.array([pairs]), np.array([len(columns)])
        rows_W = self._messages.distinct_rows(flight.num_tokens, pairs_W, np.array([most]))
        out = float(self._messages.bytes_out(flight.num_tokens, rows_W, pairs_W, segments_W)[0])
        back = float(self._messages.bytes_back(rows_W, pairs_W)[0])
        yield self._cores.run(self._group, self._costs.call(round(out), round(back)) / 2, 1)
        now = self._env.now
        deadline = now + self.speeds.timeout(self.speeds.size(pairs, len(columns)))
        call = Call(self._workers[rank], list(columns), pairs, now, deadline, out, back)
        flight.sent.append(call)
        self.num_bytes[0] += out
        if call.link.failure is not None:
            call.outcome = call.link.failure
            return
        self._env.process(self._life(call))

    def _life(self, call: Call) -> Generator[Event, Any, None]:
        env, worker, there = self._env, call.link, call.link.place.where
        yield env.timeout(self._network.arrival(env.now, self._here, there, call.bytes_out) - env.now)
        call.at_worker = env.now
        with worker.turn.request() as turn:
            yield turn
            call.begun = env.now
            rows = [count for _, count in call.segments]
            seconds, weight = worker.seconds(rows), worker.weight(rows)
            seconds += worker.costs.answer(round(call.bytes_out), round(call.bytes_back))
            yield worker.cores.run(worker.group, seconds, worker.place.threads, weight)
        call.done = env.now
        self.num_pairs += call.num_pairs
        yield env.timeout(self._network.arrival(env.now, there, self._here, call.bytes_back) - env.now)
        self.num_bytes[1] += call.bytes_back
        if call.outcome is None:
            call.outcome, call.arrived = _REPLY, env.now
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()

    def _wait(self, flight: Flight) -> Generator[Event, Any, None]:
        """For an outcome; at its time, for replicas; at most until a call's time is over."""
        while not any(call.outcome is not None for call in flight.sent):
            now, waits = self._env.now, [self._changed]
            if flight.hedge_at is not None and now >= flight.hedge_at:
                flight.hedge_at = None
                yield from self._hedge(flight)
                continue
            times = [flight.hedge_at] if flight.hedge_at is not None else []
            times += [min(call.deadline for call in flight.sent)] if self.can_fail else []
            if self.can_fail and now >= min(call.deadline for call in flight.sent):
                self._expire(flight)
                continue
            if times:
                waits.append(self._env.timeout(max(0.0, min(times) - now)))
            yield self._env.any_of(waits)

    def _hedge(self, flight: Flight) -> Generator[Event, Any, None]:
        late = [call for call in flight.sent if call.outcome is None]
        slow = {call.link.rank for call in late}
        costs = {rank: cost for rank, cost in self._costs_of_all().items() if rank not in slow}
        holders = self._holders(flight)
        for call in late:
            counts = [0] * len(holders)
            for column, rows in call.segments:
                if flight.open_C[column] and any(rank in costs for rank in holders[column]):
                    counts[column] = rows
            segments, _ = self._assign(holders, counts, costs)
            self.num_hedged += len(segments)
            for rank, columns in segments.items():
                yield from self._send_one(flight, rank, columns)

    def _expire(self, flight: Flight) -> None:
        for call in flight.sent:
            if call.outcome is None and self._env.now >= call.deadline:
                call.outcome = Failure(FailureReason.LATE, f"worker {call.link.rank}: no answer in time")
                self._rescue(call.link)

    def _take(self, flight: Flight) -> Generator[Event, Any, None]:
        settled = [call for call in flight.sent if call.outcome is not None]
        flight.sent = [call for call in flight.sent if call.outcome is None]
        for call in settled:
            if isinstance(call.outcome, Failure):
                self._put_back(flight, call)
                continue
            self.speeds.took(call.link.rank, call.num_pairs, call.arrived - call.started)
            half = self._costs.call(round(call.bytes_out), round(call.bytes_back)) / 2
            yield self._cores.run(self._group, half, 1)
            if all(flight.open_C[column] for column, _ in call.segments):
                flight.last = call
                for column, _ in call.segments:
                    flight.open_C[column] = flight.todo_C[column] = 0
            else:
                self._put_back(flight, call)

    def _put_back(self, flight: Flight, call: Call) -> None:
        at_hand = {column for sent in flight.sent for column, _ in sent.segments}
        for column, count in call.segments:
            if flight.open_C[column] and column not in at_hand:
                flight.todo_C[column] = count

    def _settle_owed(self) -> None:
        if self.speeds.is_owed:
            for sent in self.speeds.settle_owed():
                if (worker := cast("Call", sent).link).failure is None:
                    self._rescue(worker)

    def _way(self, flight: Flight) -> Split:
        call, now = flight.last, self._env.now
        if call is None:
            return Split()
        delay = self._network.way(self._here, call.link.place.where).delay_s
        return Split(
            calls=call.started - flight.started,
            link=max(0.0, (call.at_worker - call.started) + (call.arrived - call.done) - 2 * delay),
            delay=2 * delay,
            queue=call.begun - call.at_worker,
            experts=call.done - call.begun,
            combine=now - call.arrived,
        )
