"""A layer's calls at once, where they meet only at the coordinator: sums and maxima over workers.

With one coordinator and workers on machines of their own, a queue's customers are known beforehand, so
each queue is D_i = max(D_{i-1}, A_i) + S_i (Lindley, 1952), worked out for all its customers together.
Shapes: W workers that are called, in the order of their ranks; E experts.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event

from expert_workers.dispatch.assign import assign
from scaling.costs.base import NodeCosts
from scaling.simulation.machine import Cores, Group
from scaling.simulation.messages import Messages
from scaling.simulation.network import Network
from scaling.simulation.split import Split
from scaling.simulation.workers import SimWorker

Floats = NDArray[np.float64]
Work = Generator[Event, Any, None]


def departures(arrivals: Floats, services: Floats, free_at: float) -> Floats:
    """When each customer of a queue is done, in their order; none begins before `free_at`."""
    if not len(arrivals):
        return arrivals
    before = np.cumsum(services) - services
    starts = np.maximum.accumulate(np.maximum(arrivals - before, free_at))
    done: Floats = starts + before + services
    return done


class Flown(NamedTuple):
    """When answers come, in their order, what it takes to take each in, and where the time went if the
    coordinator waits for them."""

    came_W: Floats
    taking_W: Floats
    way: Split


class PlainPool:
    """The workers as one coordinator has them. `held`: by layer, the ranks of each expert."""

    def __init__(
        self,
        env: Environment,
        network: Network,
        messages: Messages,
        workers: Sequence[SimWorker],
        held: dict[int, list[tuple[int, ...]]],
        here: str,
        costs: NodeCosts,
        cores: Cores,
        group: Group,
    ) -> None:
        self._env, self._network, self._messages = env, network, messages
        self._workers, self._held, self._costs = workers, held, costs
        self._cores, self._group = cores, group
        ways = [network.way(here, worker.place.where) for worker in workers]
        self._ways = ways
        self._delays = np.array([way.delay_s for way in ways])
        self._here_s = network.byte_s(here)
        # What a byte takes beyond its time on the coordinator's link, where a path is slower than that.
        self._beyond_s = np.array([max(0.0, way.byte_s - self._here_s) for way in ways])
        self._lossy = any(way.loss for way in ways)
        self._even = dict.fromkeys(range(len(workers)), 1.0)
        self._busy_until = np.zeros(len(workers))
        self._free_up = self._free_down = 0.0
        self._experts = {
            layer: np.array([ranks[0] for ranks in ranks_E]) if all(len(r) == 1 for r in ranks_E) else None
            for layer, ranks_E in held.items()
        }
        self._calls_s: dict[tuple[int, int], float] = {}
        # Workers that are alike have one object of costs.
        self._costs_of = list({id(worker.costs): worker.costs for worker in workers}.values())
        numbers = {id(costs): number for number, costs in enumerate(self._costs_of)}
        self._kinds = np.array([numbers[id(worker.costs)] for worker in workers])
        self._answers: list[dict[tuple[int, int], float]] = [{} for _ in self._costs_of]
        self.num_pairs = 0
        self.num_bytes = [0.0, 0.0]

    def begin(self, layer: int, num_tokens: int, rows_E: NDArray[Any]) -> Generator[Event, Any, Flown]:
        """The coordinator's own time to send is over when this returns; the rest is known by then."""
        env, begun = self._env, self._env.now
        ranks, pairs_W, segments, most_W = self._chosen(layer, rows_E)
        num_rows_W = self._messages.distinct_rows(num_tokens, pairs_W, most_W)
        counts_W = np.array([len(rows) for rows in segments])
        out_W = self._messages.bytes_out(num_tokens, num_rows_W, pairs_W, counts_W)
        back_W = self._messages.bytes_back(num_rows_W, pairs_W)
        halves_W = self._mine(out_W, back_W) / 2
        sending = float(halves_W.sum())
        yield self._cores.run(self._group, sending, 1)
        stretched = (env.now - begun) / sending if sending else 1.0
        ready_W = begun + stretched * np.cumsum(halves_W)

        beyond_W, delays_W = self._beyond_s[ranks], self._delays[ranks]
        sent_W = departures(ready_W, out_W * self._here_s, self._free_up)
        self._free_up = float(sent_W[-1])
        arrived_W = sent_W + out_W * beyond_W + delays_W + self._losses(ranks, out_W)
        work_W = self._work(ranks, segments, out_W, back_W)
        start_W = np.maximum(arrived_W, self._busy_until[ranks])
        done_W = start_W + work_W
        self._busy_until[ranks] = done_W

        back_at_W = done_W + delays_W + back_W * beyond_W
        order = np.argsort(back_at_W, kind="stable")
        came_W = departures(back_at_W[order], (back_W * self._here_s)[order], self._free_down)
        self._free_down = float(came_W[-1])
        came_W = came_W + self._losses(ranks[order], back_W[order])
        taken_W = departures(came_W, halves_W[order], env.now)
        self.num_pairs += int(pairs_W.sum())
        self.num_bytes[0] += float(out_W.sum())
        self.num_bytes[1] += float(back_W.sum())

        last = int(np.argmax(came_W))
        at = int(order[last])
        way = Split(
            calls=float(ready_W[at] - begun),
            queue=float(start_W[at] - arrived_W[at]),
            experts=float(work_W[at]),
            delay=float(2 * delays_W[at]),
            combine=float(taken_W[-1] - came_W[last]),
        )
        way.link = float(taken_W[-1] - begun) - sum(
            (way.calls, way.queue, way.experts, way.delay, way.combine)
        )
        return Flown(came_W, halves_W[order], way)

    def finish(self, flown: Flown, split: Split) -> Work:
        """Takes in what has come meanwhile, and the rest as it comes."""
        now = self._env.now
        ended = float(departures(flown.came_W, flown.taking_W, now)[-1])
        if ended > now:
            yield self._env.timeout(ended - now)
        split.add_wait(flown.way, ended - now)

    def found(self) -> None:
        """Nothing is lost here."""

    def wait_for_lost(self, timeout: float) -> Generator[Event, Any, bool]:
        raise AssertionError(f"nothing is lost here, for {timeout} s")

    def _chosen(
        self, layer: int, rows_E: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], list[list[int]], NDArray[Any]]:
        """Who is called, its pairs, the rows of each of its experts, and of the one with the most."""
        only_E = self._experts[layer]
        if only_E is None:
            segments, lost = assign(self._held[layer], rows_E.tolist(), self._even)
            assert not lost, "every expert has a holder"
            ranks, rows = list(segments), [[count for _, count in each] for each in segments.values()]
        else:
            by_rank: dict[int, list[int]] = {}
            for rank, count in zip(only_E.tolist(), rows_E.tolist(), strict=True):
                if count:
                    by_rank.setdefault(rank, []).append(count)
            ranks = sorted(by_rank)
            rows = [by_rank[rank] for rank in ranks]
        pairs_W, most_W = np.array([sum(each) for each in rows]), np.array([max(each) for each in rows])
        return np.array(ranks), pairs_W, rows, most_W

    def _work(
        self, ranks: NDArray[Any], rows: Sequence[Sequence[int]], out_W: Floats, back_W: Floats
    ) -> Floats:
        """Each worker's own time for its call. Of workers that are alike, equal calls cost the same."""
        workers = self._workers
        experts_W = np.array([workers[rank].seconds(each) for rank, each in zip(ranks, rows, strict=True)])
        kinds_W = self._kinds[ranks]
        for kind in set(kinds_W.tolist()):
            its = kinds_W == kind
            experts_W[its] += _remembered(
                self._answers[kind], self._costs_of[kind].answer, out_W[its], back_W[its]
            )
        return experts_W

    def _mine(self, out_W: Floats, back_W: Floats) -> Floats:
        """The coordinator's time for each call."""
        return _remembered(self._calls_s, self._costs.call, out_W, back_W)

    def _losses(self, ranks: NDArray[Any], num_bytes_W: Floats) -> Floats:
        if not self._lossy:
            return np.zeros(len(ranks))
        each = zip(ranks, num_bytes_W, strict=True)
        return np.array([self._network.recovery(self._ways[rank], num) for rank, num in each])


def _remembered(
    known: dict[tuple[int, int], float], cost: Callable[[int, int], float], out_W: Floats, back_W: Floats
) -> Floats:
    """Of calls of so many bytes out and back, each size worked out once."""
    sizes = zip(
        np.rint(out_W).astype(np.int64).tolist(), np.rint(back_W).astype(np.int64).tolist(), strict=True
    )
    found = np.empty(len(out_W))
    for place, size in enumerate(sizes):
        seconds = known.get(size)
        if seconds is None:
            seconds = known[size] = cost(*size)
        found[place] = seconds
    return found
