"""Members: what the supervisor knows of each worker, and what follows from it. Pure.

A module is wanted where the target says so. What is missing is loaded, what is in excess is dropped once
nobody asks for it there any more, and routes name only what is there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from expert_workers.status import WorkerState
from expert_workers.supervision.restart_policy import RestartPolicy
from expert_workers.transports.base import FailureReason, Link
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import WorkerInfo
from moe_model.layers.dispatch import ExpertKey

# The rank of the coordinator's own process, where experts are loaded as a last resort.
LOCAL = 1 << 20
# Seconds for which a module stays after the last step that could have asked for it there has begun.
DROP_AFTER = 2.0

Keys = frozenset[ExpertKey]


@dataclass(slots=True)
class Surplus:
    """Keys that routes of `version` and later no longer name there; `since`: when those were adopted."""

    keys: Keys
    version: int
    since: float | None = None


@dataclass(slots=True)
class Member:
    """One worker. `is_busy`: somebody is at it, its job `num_jobs`; `held` is what its process has loaded,
    `missing` what it should hold besides, and `problem` why it could not load that."""

    rank: int
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    info: WorkerInfo | None = None
    link: Link | None = None
    held: Keys = frozenset()
    missing: Keys = frozenset()
    problem: str = ""
    is_busy: bool = False
    num_jobs: int = 0
    is_leaving: bool = False
    num_losses: int = 0
    last_loss: str = ""
    last_reason: FailureReason | None = None
    lost_at: float | None = None
    surplus: Surplus | None = None
    canaries: dict[ExpertKey, Array] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return self.link is not None

    @property
    def state(self) -> WorkerState:
        if self.is_leaving:
            return WorkerState.DRAINING
        if self.is_ready:
            return WorkerState.INCOMPLETE if self.missing else WorkerState.READY
        if self.policy.is_open:
            return WorkerState.BROKEN
        return WorkerState.STARTING if self.lost_at is None else WorkerState.LOST

    def note_wish(self, wish: Keys) -> None:
        """What it shall hold, as things are now."""
        self.missing = wish - self.held if self.is_ready else frozenset()
        if not self.missing:
            self.problem = ""


@dataclass(frozen=True, slots=True)
class BringUp:
    rank: int


@dataclass(frozen=True, slots=True)
class Load:
    rank: int
    keys: Keys


@dataclass(frozen=True, slots=True)
class Drop:
    rank: int
    keys: Keys


@dataclass(frozen=True, slots=True)
class End:
    rank: int


Action = BringUp | Load | Drop | End


def holders_of(
    members: Iterable[Member], wanted: Mapping[int, Keys], keys: Iterable[ExpertKey]
) -> dict[ExpertKey, tuple[int, ...]]:
    """Who can be asked for each module: those that shall hold it, else whoever still does."""
    ready = sorted((m for m in members if m.is_ready), key=lambda m: (m.is_leaving, m.rank == LOCAL, m.rank))
    meant: dict[ExpertKey, list[int]] = {}
    spare: dict[ExpertKey, int] = {}
    for member in ready:
        wish = wanted.get(member.rank, frozenset())
        for key in member.held:
            if key in wish:
                meant.setdefault(key, []).append(member.rank)
            else:
                spare.setdefault(key, member.rank)
    return {key: tuple(meant[key]) if key in meant else (spare[key],) if key in spare else () for key in keys}


def actions(
    members: Iterable[Member], wanted: Mapping[int, Keys], routed: Mapping[int, Keys], now: float
) -> list[Action]:
    """What is to be done now with those that nobody is at. `routed` is what the published routes name."""
    found: list[Action] = []
    for member in members:
        if member.is_busy:
            continue
        wish = wanted.get(member.rank, frozenset())
        if not member.is_ready:
            if not member.is_leaving and now >= member.policy.next_at:
                found.append(BringUp(member.rank))
            elif member.is_leaving:
                found.append(End(member.rank))
        elif wish - member.held and now >= member.policy.next_at:
            found.append(Load(member.rank, frozenset(wish - member.held)))
        else:
            found += _drops(member, wish, routed.get(member.rank, frozenset()), now)
    return found


def _drops(member: Member, wish: Keys, routed: Keys, now: float) -> list[Action]:
    surplus = member.surplus
    if surplus is None or surplus.since is None or now - surplus.since < DROP_AFTER:
        return []
    if member.is_leaving:
        return [End(member.rank)] if not member.held & routed else []
    keys = surplus.keys - wish - routed
    return [Drop(member.rank, keys)] if keys else []


def note_surplus(member: Member, wish: Keys, routed: Keys, version: int) -> None:
    """After routes were published: what this member holds for nobody."""
    keys = frozenset(member.held - wish - routed)
    if not member.is_ready or not (keys or (member.is_leaving and not member.held & routed)):
        member.surplus = None
    elif member.surplus is None or member.surplus.keys != keys:
        member.surplus = Surplus(keys, version)


def note_adopted(members: Iterable[Member], adopted: int, now: float) -> None:
    """The pool uses routes of this version."""
    for member in members:
        surplus = member.surplus
        if surplus is not None and surplus.since is None and adopted >= surplus.version:
            surplus.since = now


def next_due(members: Iterable[Member], now: float) -> float | None:
    """When something is due by the clock alone, in seconds from now."""
    times = []
    for member in members:
        if member.surplus is not None and not member.is_busy:
            times.append(
                DROP_AFTER if member.surplus.since is None else member.surplus.since + DROP_AFTER - now
            )
        if not member.is_ready and not member.is_busy and not member.is_leaving:
            times.append(member.policy.next_at - now)
    return max(0.01, min(times)) if times else None
