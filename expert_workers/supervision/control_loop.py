"""ControlLoop: compares what the workers hold with what they shall hold, and starts what follows from it.

All of it belongs to the event loop's thread; what waits for a worker runs elsewhere and comes back as an
event. After each event the loop looks at everything again (`_look_around`), whatever the event was.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from expert_workers.dispatch.options import OnLoss
from expert_workers.dispatch.routes import Address
from expert_workers.placement.recent_loads import RecentLoads
from expert_workers.supervision.actions import actions, next_due, note_adopted
from expert_workers.supervision.crew import crew_of
from expert_workers.supervision.desired_state import DesiredState
from expert_workers.supervision.endings import Endings
from expert_workers.supervision.event_loop import EventLoop
from expert_workers.supervision.health import Health
from expert_workers.supervision.health_watch import HealthWatch
from expert_workers.supervision.jobs import Jobs
from expert_workers.supervision.last_resort import LastResort, LoadHere
from expert_workers.supervision.mixed_kernels import MixedKernels
from expert_workers.supervision.options import Published, SupervisionObserver, SupervisorOptions
from expert_workers.supervision.pending_changes import PendingChange, PendingChanges, are_settled
from expert_workers.supervision.publisher import Publisher
from expert_workers.supervision.roster import Roster
from expert_workers.supervision.worker_jobs import WorkerJobs
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from expert_workers.transports.base import Failure
from expert_workers.transports.fleet import Machine
from moe_model.errors import ClusterError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule

_log = logging.getLogger(__name__)


class ControlLoop:
    """Other threads post what they call to its `loop`, but for `workers`, `expert_ids` and `is_fenced`."""

    def __init__(
        self,
        jobs: Jobs,
        modules: Sequence[ExpertModule],
        pool: Published,
        options: SupervisorOptions | None = None,
        observer: SupervisionObserver | None = None,
        load_here: LoadHere | None = None,
        over: Callable[[str], None] | None = None,
    ) -> None:
        """`load_here` loads modules into this process; `over` is told why the workers can't be looked after
        any more: another coordinator has taken over, or the cluster's head is gone."""
        self._options = options = options or SupervisorOptions()
        self._pool, self._observer = pool, observer
        self._desired = DesiredState(modules, options.replicas, options.redundant, options.planned)
        self._recent = RecentLoads(options.rebalance_interval, time.monotonic())
        here = LastResort(load_here, options.restarts)
        self._roster = Roster(options.restarts, here)
        self._pending = PendingChanges()
        self._endings = Endings(pool, self._pending, over)
        self._publisher = Publisher(pool)
        self.loop = EventLoop("supervisor", self._look_around, self._next_timeout)
        self._jobs = WorkerJobs(
            jobs=jobs,
            loop=self.loop,
            roster=self._roster,
            here=here,
            desired=self._desired,
            pending=self._pending,
            endings=self._endings,
            observer=observer,
        )
        has_machines = options.has_machines or options.workers_per_node > 0
        self._health = Health(options.health)
        self._watch = HealthWatch(
            self._health, jobs, self.loop, self._jobs, self._seen if has_machines else None
        )
        self._mixed = MixedKernels(options.kernels, computes_here=options.on_loss.computes_here)
        self._machines: Sequence[Machine] | None = None
        self._num_wanted = 0

    @property
    def is_fenced(self) -> bool:
        """Whether the workers are another coordinator's now."""
        return self._endings.is_fenced

    @property
    def follows_machines(self) -> bool:
        """Whether their number says how many workers there shall be."""
        return self._options.workers_per_node > 0

    def expert_ids(self) -> dict[ExpertKey, int]:
        return self._desired.expert_ids()

    def workers(self) -> list[SupervisedWorker]:
        """To be read only."""
        return self._roster.workers

    def begin(
        self,
        num_workers: int,
        change: PendingChange,
        machines: Sequence[Machine] | None = None,
        found: Mapping[int, str] | None = None,
    ) -> None:
        """There shall be so many workers, or those that belong on the machines; `found` are there already, by
        rank the machine of each."""
        self._machines = machines
        for rank, node_id in (found or {}).items():
            self._roster.join(rank, node_id)
        self.resize(num_workers, change)

    def resize(self, num_workers: int, change: PendingChange) -> None:
        """There shall be so many workers; where they follow the machines, that is another number."""
        self._num_wanted = num_workers
        change.num_before = self._roster.num_staying
        self._follow_machines()
        self._pending.add(change)

    def add(self, module: ExpertModule, change: PendingChange) -> None:
        """One more module is wanted."""
        self._desired.add(module)
        change.num_before = len(self._roster.workers)
        self._pending.add(change)

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """These modules are wanted no longer."""
        self._desired.remove(keys)

    def lost(self, address: Address, failure: Failure) -> None:
        """The pool has found that its link to this address fails."""
        worker = self._roster.get(address.rank)
        if worker is not None and worker.address == address:
            self._jobs.lose(worker, failure)

    def rescue(self, keys: Sequence[ExpertKey]) -> None:
        """Finds a place for modules that no worker holds."""
        on_loss, now, left = self._options.on_loss, time.monotonic(), set(keys)
        if on_loss in (OnLoss.AUTO, OnLoss.RELOAD):
            left -= self._desired.rescue(left, self._roster.workers, now)
        if left and on_loss.computes_here:
            self._jobs.load_here(frozenset(left), now)

    def _look_around(self) -> None:
        """What follows from how things are now."""
        if self._endings.are_left_alone:
            return
        now = time.monotonic()
        note_adopted(self._roster.holders, self._pool.adopted, now)
        self._place(now)
        lost = self._rescue_lost()
        wanted = self._desired.wanted(self._roster.holders)
        for worker in self._roster.workers:
            worker.is_needed = not lost.isdisjoint(wanted.get(worker.rank, ()))
        drop_after, routed = self._options.drop_after, self._publisher.routed
        for action in actions(self._roster.holders, wanted, routed, now, drop_after):
            self._jobs.act(action)
        self._publisher.publish(self._roster.holders, wanted, self._desired.keys)
        if gone := self._health.why_gone(now):
            self._end(ClusterError(gone))
        self._watch.look(self._roster.workers, now)
        self._settle(wanted)

    def _next_timeout(self) -> float:
        tick = self._options.tick
        due = next_due(self._roster.holders, time.monotonic(), self._options.drop_after)
        return tick if due is None else min(tick, due)

    def _place(self, now: float) -> None:
        """Says anew which worker shall hold what, unless one has yet to be ready for the first time; that is
        not waited for where another one is to leave."""
        holders = self._roster.holders
        is_one_coming = any(not (w.is_ready or w.num_losses or w.is_leaving) for w in holders)
        if is_one_coming and (self._pending.is_starting or not any(w.is_leaving for w in holders)):
            return
        loads, workers = None, self._roster.workers
        if self._recent.is_due(now):
            loads = self._recent.take(self._pool.loads(), self._desired.keys, now)
        lost_before = now - self._options.restore_after
        costs = {} if loads is None else self._pool.costs()
        if self._desired.place(workers, lost_before, loads, costs):
            if loads is not None:
                self._pending.add(PendingChange(len(workers)))
            self._pending.moved(self._desired.num_moved)

    def _rescue_lost(self) -> Keys:
        """Looks for experts that no worker holds, once one was lost; returns them."""
        if self._pending.is_starting or all(w.lost_at is None for w in self._roster.workers):
            return frozenset()
        missing = self._missing()
        if missing:
            self.rescue(tuple(missing))
        return missing

    def _end(self, why: ClusterError) -> None:
        """The cluster is gone. What is under way computes on with what there is, and waits for what those
        that are left are loading now; what they would load later is not waited for."""
        self._endings.end(why)
        if self._missing() and not any(w.is_busy and (w.is_ready or w.is_here) for w in self._roster.holders):
            self._endings.give_up(why)

    def _missing(self) -> Keys:
        """What is wanted and no worker holds."""
        return self._desired.keys.difference(*(w.held for w in self._roster.holders if w.is_ready))

    def _settle(self, wanted: Mapping[int, Keys]) -> None:
        workers = self._roster.workers
        if not self._desired.is_placed:
            return
        if not self._pending.is_starting or are_settled(workers, wanted):
            # Before the caller that waits for the start is told.
            self._mixed.look(workers)
        for change in self._pending.settle(workers, wanted):
            if self._observer is not None and not change.is_start and change.num_moved:
                self._observer.rebalanced(change.num_moved, time.monotonic() - change.started)

    def _seen(self, machines: Sequence[Machine]) -> None:
        """The cluster has these machines now."""
        before, self._machines = self._machines, machines
        if self._pending.is_starting or not machines:
            return
        # Two looks in a row: a machine may come and go while it starts.
        is_same = before is not None and set(before) == set(machines)
        num_before, change = self._roster.num_staying, PendingChange()
        if (is_same or any(machine.is_leaving for machine in machines)) and self._follow_machines():
            change.num_before = num_before
            self._pending.add(change)
            num_leaving = sum(machine.is_leaving for machine in machines)
            _log.info(
                "%d machines, of which %d leave: %d workers",
                *(len(machines), num_leaving, self._roster.num_staying),
            )

    def _follow_machines(self) -> bool:
        """Whether there shall be other workers than before."""
        per_node = self._options.workers_per_node
        crew = crew_of(self._roster.workers, self._machines, self._num_wanted, per_node)
        return self._roster.follow(crew)
