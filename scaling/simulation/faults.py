"""What breaks in a simulation, and how it is mended: as the product's supervisor does it."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from simpy import Event, Resource

from expert_workers.transports.base import Failure, FailureReason
from scaling.cell import Fault
from scaling.simulation.workers import SimWorker, first_holders, holders_without, load_seconds

if TYPE_CHECKING:
    from scaling.simulation.world import World

Work = Generator[Event, Any, None]


class Breaking:
    """Faults of one world. Workers that were lost come back after `restart_s` and loading."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._gone: set[int] = set()

    def happens(self, fault: Fault) -> Work:
        """At its time, and until it is over."""
        world = self._world
        yield world.env.timeout(fault.at_s)
        worker = world.workers[fault.worker]
        if fault.kind == "kill":
            self._died(worker, FailureReason.DIED)
        elif fault.kind == "pause":
            worker.cores.pause(worker.group, is_paused=True)
            yield world.env.timeout(fault.seconds)
            worker.cores.pause(worker.group, is_paused=False)
        elif fault.kind == "slow":
            slow, quota = fault.share * worker.place.threads, worker.place.quota
            worker.cores.limit(worker.group, slow if quota is None else min(slow, fault.share * quota))
            yield world.env.timeout(fault.seconds)
            worker.cores.limit(worker.group, worker.place.quota)
        else:
            world.network.cut_until[worker.place.where] = world.env.now + fault.seconds

    def lost(self, worker: SimWorker) -> None:
        """A call was not answered in time."""
        self._died(worker, FailureReason.LATE)

    def _died(self, worker: SimWorker, reason: FailureReason) -> None:
        if worker.failure is not None:
            return
        world = self._world
        worker.failure = Failure(reason, f"worker {worker.rank}: lost")
        worker.cores.clear(worker.group)
        self._gone.add(worker.rank)
        for pool in world.pools:
            pool.died(worker)
        left = {key: tuple(r for r in ranks if r not in self._gone) for key, ranks in world.holders.items()}
        world.publish(left)
        world.env.process(self._rescue())
        world.env.process(self._restart(worker))

    def _rescue(self) -> Work:
        """What no worker holds any more is loaded on those that are left."""
        world = self._world
        before = world.holders
        if all(before.values()):
            return
        after = holders_without(world.setting, before, self._gone)
        ranks = {rank for held in after.values() for rank in held}
        slowest = max(
            (load_seconds(world.setting, world.shape, before, after, r) for r in ranks), default=0.0
        )
        yield world.env.timeout(slowest)
        world.publish({key: tuple(r for r in held if r not in self._gone) for key, held in after.items()})

    def _restart(self, worker: SimWorker) -> Work:
        """A new process, with what it held at the start."""
        world, rank = self._world, worker.rank
        yield world.env.timeout(world.setting.restart_s)
        first = first_holders(world.setting, world.shape)
        own = {key: (rank,) for key, ranks in first.items() if rank in ranks}
        yield world.env.timeout(load_seconds(world.setting, world.shape, {}, own, rank))
        world.workers[rank] = SimWorker(
            rank,
            worker.place,
            worker.costs,
            worker.whole,
            worker.cores,
            worker.cores.group(worker.place.quota, world.setting.period_s),
            Resource(world.env),
        )
        self._gone.discard(rank)
        world.publish({key: tuple(r for r in ranks if r not in self._gone) for key, ranks in first.items()})
