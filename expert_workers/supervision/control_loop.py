"""Caretaker: the supervisor's mind. It knows every worker, what each shall hold, and what to do about it.

All of it belongs to the event loop's thread; what waits for a worker runs elsewhere and comes back as an
event. After each event it compares what is with what shall be (worker_state.py), starts the jobs that are
due, and publishes routes where they have changed.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from expert_workers.dispatch.dispatch import OnLoss
from expert_workers.dispatch.routes import Routes
from expert_workers.placement.desired_state import Targets
from expert_workers.placement.recent_loads import RecentLoads
from expert_workers.supervision.event_loop import EventLoop
from expert_workers.supervision.health import Health
from expert_workers.supervision.jobs import Jobs, Loaded, Up
from expert_workers.supervision.options import Observer, Published, SupervisorOptions
from expert_workers.supervision.pending_changes import Change, Changes
from expert_workers.supervision.restart_policy import RestartPolicy
from expert_workers.supervision.worker_state import (
    LOCAL,
    Action,
    BringUp,
    Drop,
    End,
    Keys,
    Load,
    Member,
    actions,
    holders_of,
    next_due,
    note_adopted,
    note_surplus,
)
from expert_workers.transports.base import Failure, FailureReason, Link
from expert_workers.worker.expert_worker import WorkerInfo
from moe_model.errors import ClusterError, FencedError, WorkerStartError, WorldError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule

_log = logging.getLogger(__name__)

_TICK = 0.5
# For so long after a loss, a process that is not there is one that Ray has yet to start.
_RESTART_TIME = 30.0
_SILENT = (FailureReason.DIED, FailureReason.LATE)
_KILLED = (FailureReason.LATE, FailureReason.INVALID, FailureReason.CORRUPT, FailureReason.RAISED)


class Caretaker:
    """What others may call, they post to its `loop`, but for `members` and `is_fenced`."""

    def __init__(
        self,
        jobs: Jobs,
        modules: Sequence[ExpertModule],
        pool: Published,
        options: SupervisorOptions | None = None,
        observer: Observer | None = None,
        local: Callable[[Sequence[ExpertModule]], Link] | None = None,
        over: Callable[[str], None] | None = None,
    ) -> None:
        """`local` loads modules into this process; `over` is told why the workers can't be looked after any
        more: another coordinator has taken over, or the cluster's head is gone."""
        self._jobs = jobs
        self._pool = pool
        self._options = options or SupervisorOptions()
        self._observer = observer
        self._local, self._over = local, over or _ignore
        self._targets = Targets(modules, self._options.replicas, self._options.redundant)
        self._members: dict[int, Member] = {}
        self._routes = Routes()
        self._routed: dict[int, Keys] = {}
        self._changes = Changes()
        self._health = Health(self._options.health)
        self._recent = RecentLoads(self._options.rebalance_interval, time.monotonic())
        self._num_nodes, self._num_wanted = 0, 0
        self._local_policy = RestartPolicy(self._options.restarts)
        self._is_fenced, self._is_over = False, False
        self.loop = EventLoop("supervisor", self._look_around, self._next_timeout)

    @property
    def is_fenced(self) -> bool:
        """Whether the workers are another coordinator's now."""
        return self._is_fenced

    def expert_ids(self) -> dict[ExpertKey, int]:
        return self._targets.expert_ids()

    def members(self) -> list[Member]:
        """To be read only."""
        return sorted((m for m in list(self._members.values()) if m.rank != LOCAL), key=lambda m: m.rank)

    def _next_timeout(self) -> float:
        due = next_due(self._members.values(), time.monotonic())
        return _TICK if due is None else min(_TICK, due)

    def _job(
        self,
        member: Member,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        loading: Keys = frozenset(),
    ) -> None:
        """Runs `work` elsewhere; what comes of it comes back here. Nobody else is at the member meanwhile,
        unless it has to be fenced: what was begun with that process before counts no more."""
        member.is_busy = True
        member.num_jobs += 1
        number = member.num_jobs

        def end(result: Any) -> None:
            if self._members.get(member.rank) is not member or member.num_jobs != number:
                return
            member.is_busy = False
            if isinstance(result, Failure):
                self._job_failed(member, result, loading)
            else:
                done(result)

        self.loop.submit(work, end)

    def _look_around(self) -> None:
        """What follows from how things are now."""
        if self._is_fenced or self._changes.have_begun_badly:
            return
        now = time.monotonic()
        note_adopted(self._members.values(), self._pool.adopted, now)
        self._retarget(now)
        self._rescue_lost()
        wanted = self._targets.wanted(self._members.values())
        for action in actions(self._members.values(), wanted, self._routed, now):
            self._act(action)
        self._publish(wanted)
        self._check_health(now)
        self._settle_changes(wanted)

    def _retarget(self, now: float) -> None:
        members = self._members.values()
        if not all(m.is_ready or m.num_losses for m in members if not m.is_leaving):
            return
        loads = None
        if self._recent.is_due(now):
            loads = self._recent.take(self._pool.loads(), self._targets.keys, now)
        lost_before = now - self._options.restore_after
        if self._targets.place(members, lost_before, loads, {} if loads is None else self._pool.costs()):
            if loads is not None:
                self._changes.add(Change(len(self._members)))
            self._changes.moved(self._targets.num_moved)

    def _act(self, action: Action) -> None:
        member = self._members[action.rank]
        match action:
            case BringUp():
                known = self._targets.keys
                bring_up = partial(self._jobs.bring_up, is_back=member.lost_at is not None)
                self._job(member, partial(bring_up, member.rank, known), partial(self._up, member))
            case Load(rank, keys):
                is_whole, modules = self._changes.is_starting, self._targets.modules(keys)
                load = partial(self._jobs.load, rank, modules, is_whole=is_whole)
                self._job(member, load, partial(self._loaded, member, keys), keys)
            case Drop(rank, keys) if rank != LOCAL:
                drop = partial(self._jobs.drop, rank, sorted(keys))
                self._job(member, drop, partial(self._dropped, member))
            case Drop(_, keys):
                if keys >= member.held:
                    del self._members[LOCAL]
            case End(rank):
                member.link = None  # It is not lost: from here on nobody listens to how it ends.
                self._job(member, partial(self._jobs.end, rank), partial(self._ended, rank))

    def _ended(self, rank: int, _: object) -> None:
        member = self._members.pop(rank)
        if not member.is_leaving:
            # It is wanted again in the meantime.
            self._members[rank] = Member(rank, RestartPolicy(self._options.restarts))

    def _up(self, member: Member, up: Up) -> None:
        before, member.info = member.info, up.info
        member.link, member.held = up.link, frozenset(up.info.keys)
        member.canaries.clear()
        member.policy.ready(time.monotonic())
        if member.lost_at is not None:
            _log.info("worker %d is back, as process %d", member.rank, up.info.pid)
            if self._observer is not None and before is not None and before.pid != up.info.pid:
                self._observer.restarted(member.rank, member.last_reason or FailureReason.DIED)
        member.lost_at = None
        self._note_canaries(member, up.canaries)

    def _loaded(self, member: Member, keys: Keys, loaded: Loaded) -> None:
        member.info, member.held = loaded.info, frozenset(loaded.info.keys)
        if loaded.failure is not None:
            self._job_failed(member, loaded.failure, keys - member.held)
        self._note_canaries(member, loaded.canaries)

    def _note_canaries(self, member: Member, canaries: Mapping[ExpertKey, Any]) -> None:
        member.canaries.update(canaries)
        odd = self._health.odd_one(member, canaries, self._members.values())
        if odd:
            self._lose(member, Failure(FailureReason.CORRUPT, f"worker {member.rank}: {odd}"))

    def _dropped(self, member: Member, info: WorkerInfo) -> None:
        member.info, member.held = info, frozenset(info.keys)
        for key in set(member.canaries) - member.held:
            del member.canaries[key]

    def _job_failed(self, member: Member, failure: Failure, loading: Keys) -> None:
        if self._changes.is_starting and failure.reason not in _SILENT:
            # Whoever waits for the start says so, and ends it all; another's workers are left alone.
            self._is_fenced = failure.reason is FailureReason.FENCED
            self._changes.fail_start(WorkerStartError(failure.message))
        if self._changes.have_begun_badly:
            return
        if member.is_ready and failure.reason is FailureReason.RAISED:
            # It could not load; what it has, it can still compute.
            _log.error("%s", failure.message)
            member.problem = failure.message
            member.policy.failed(time.monotonic())
            blamed = self._changes.fail_new(loading, WorkerStartError(failure.message))
            if blamed:
                self._targets.remove(blamed)
                member.policy = RestartPolicy(self._options.restarts)
        elif member.rank == LOCAL:
            _log.error("experts cannot be loaded here: %s", failure.message)
            self._forget_local()
        elif failure.reason in _SILENT and self._is_expected_back(member):
            member.policy.soon(time.monotonic())
        else:
            self._lose(member, failure)

    def _is_expected_back(self, member: Member) -> bool:
        """Until Ray has started it again, it says that it is gone, or nothing at all."""
        return member.lost_at is not None and time.monotonic() - member.lost_at < _RESTART_TIME

    def lost(self, link: Link, failure: Failure) -> None:
        member = self._members.get(link.rank)
        if member is not None and member.link is link:
            self._lose(member, failure)

    def _lose(self, member: Member, failure: Failure) -> None:
        now = time.monotonic()
        _log.warning("worker %d lost (%s): %s", member.rank, failure.reason, failure.message)
        if member.rank == LOCAL:
            self._forget_local()
            return
        if failure.reason is FailureReason.FENCED and not self._is_fenced:
            # They are another's now: from here on nothing is done to them.
            self._is_fenced = True
            self._end(FencedError(failure.message))
        info, was_ready = member.info, member.is_ready
        member.link, member.held, member.surplus = None, frozenset(), None
        if was_ready and self._observer is not None:
            self._observer.lost(member.rank, failure.reason)
        member.num_losses += 1
        member.last_loss, member.last_reason = failure.message, failure.reason
        member.lost_at = now if member.lost_at is None else member.lost_at
        member.policy.failed(now)
        if failure.reason in _KILLED and info is not None and was_ready:
            self._job(member, partial(self._jobs.fence, info), _ignore)
        elif failure.reason is FailureReason.DIED and info is not None and was_ready:
            self.loop.submit(partial(self._jobs.was_oom, info), partial(self._explain, member))

    def _forget_local(self) -> None:
        self._local_policy.failed(time.monotonic())
        del self._members[LOCAL]

    def _explain(self, member: Member, was_oom: object) -> None:
        """Why a process is gone shows only once it is."""
        if was_oom is True and member.last_reason is FailureReason.DIED:
            member.last_reason = FailureReason.OOM
            member.last_loss = f"worker {member.rank}: was killed for want of memory"
            _log.warning("%s", member.last_loss)

    def _end(self, why: WorldError) -> None:
        if self._is_over:
            return
        self._is_over = True
        _log.error("the expert workers are no longer ours to look after: %s", why)
        self._pool.give_up(why)
        self._changes.fail_start(why)
        self._over(str(why))

    def _rescue_lost(self) -> None:
        """Experts that nobody holds, now that somebody was lost."""
        if self._changes.is_starting or not any(m.lost_at is not None for m in self._members.values()):
            return
        held = {key for m in self._members.values() if m.is_ready for key in m.held}
        missing = self._targets.keys - held
        if missing:
            self.rescue(tuple(missing))

    def rescue(self, keys: Sequence[ExpertKey]) -> None:
        on_loss = self._options.on_loss
        left = set(keys)
        if on_loss in (OnLoss.AUTO, OnLoss.RELOAD):
            left -= self._targets.rescue(left, self._members.values(), time.monotonic())
        if left and on_loss in (OnLoss.AUTO, OnLoss.LOCAL) and self._local is not None:
            self._load_here(self._local, left)

    def _load_here(self, load: Callable[[Sequence[ExpertModule]], Link], keys: set[ExpertKey]) -> None:
        if time.monotonic() < self._local_policy.next_at:
            return
        member = self._members.setdefault(LOCAL, Member(LOCAL, self._local_policy))
        new = keys - member.held
        if member.is_busy or not new:
            return
        wanted = (member.held | new) & self._targets.keys
        _log.warning("loading %d experts into the coordinator", len(wanted))

        def done(link: Link) -> None:
            member.link, member.held, member.lost_at = link, wanted, None
            member.policy.ready(time.monotonic())

        self._job(member, partial(load, self._targets.modules(wanted)), done)

    def _publish(self, wanted: Mapping[int, Keys]) -> None:
        members = self._members
        holders = holders_of(members.values(), wanted, sorted(self._targets.keys))
        links = {m.rank: m.link for m in members.values() if m.link is not None}
        if holders != self._routes.holders or links != self._routes.links:
            self._routes = Routes(self._routes.version + 1, links, holders)
            self._routed = {
                rank: frozenset(k for k, ranks in holders.items() if rank in ranks) for rank in links
            }
            self._pool.publish(self._routes)
        for member in members.values():
            wish = wanted.get(member.rank, frozenset())
            member.note_wish(wish)
            note_surplus(member, wish, self._routed.get(member.rank, frozenset()), self._routes.version)

    def _check_health(self, now: float) -> None:
        if gone := self._health.why_gone(now):
            self._end(ClusterError(gone))
        if self._health.is_check_due(now):
            is_counted = self._options.workers_per_node > 0
            self.loop.submit(partial(self._jobs.check, is_counted=is_counted), self._counted)
        for member in self._health.due_beats(self._members.values(), now):
            link = member.link
            end = partial(self._beaten, member, link)
            self.loop.submit(partial(self._jobs.beat, member.rank), end)
        for member, keys in self._health.due_canaries(self._members.values(), now):
            self._job(member, partial(self._jobs.canary, member.rank, keys), partial(self._sung, member))

    def _beaten(self, member: Member, link: Link | None, result: WorkerInfo | Failure) -> None:
        self._health.beaten(member.rank)
        if member.link is None or member.link is not link:
            return
        if isinstance(result, Failure):
            self._lose(member, result)
        elif member.info is not None and result.pid != member.info.pid:
            self._lose(member, Failure(FailureReason.DIED, f"worker {member.rank}: is another process now"))

    def _counted(self, result: int | Failure) -> None:
        self._health.checked(result.message if isinstance(result, Failure) else "", time.monotonic())
        if isinstance(result, Failure) or not self._options.workers_per_node or self._changes.is_starting:
            return
        before, self._num_nodes = self._num_nodes, result
        num_wanted = self._options.workers_per_node * result
        # Two looks in a row: a machine may come and go while it starts.
        if result and before == result and num_wanted != self._num_wanted:
            _log.info("%d machines: %d workers", result, num_wanted)
            self.resize(num_wanted, Change())

    def _sung(self, member: Member, canaries: Mapping[ExpertKey, Any]) -> None:
        changed = self._health.changed(member, canaries)
        if changed:
            self._lose(member, Failure(FailureReason.CORRUPT, f"worker {member.rank}: {changed}"))

    def resize(self, num_workers: int, change: Change) -> None:
        ranks = [rank for rank, m in self._members.items() if rank != LOCAL and not m.is_leaving]
        for rank in range(num_workers):
            self._members.setdefault(rank, Member(rank, RestartPolicy(self._options.restarts)))
        for rank, member in self._members.items():
            member.is_leaving = rank >= num_workers and rank != LOCAL
        self._num_wanted = num_workers
        change.num_before = len(ranks)
        self._changes.add(change)

    def add(self, module: ExpertModule, change: Change) -> None:
        self._targets.add(module)
        change.num_before = len(self._members)
        self._changes.add(change)

    def release(self, keys: Sequence[ExpertKey]) -> None:
        self._targets.remove(keys)

    def _settle_changes(self, wanted: Mapping[int, Keys]) -> None:
        if not self._targets.is_placed:
            return
        for change in self._changes.settle(self._members.values(), wanted):
            if self._observer is not None and not change.is_start and change.num_moved:
                self._observer.rebalanced(change.num_moved, time.monotonic() - change.started)


def _ignore(_: object) -> None:
    """Nothing follows from it."""
