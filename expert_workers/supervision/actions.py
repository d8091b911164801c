"""What follows from how the workers are. Pure.

A module is wanted where the desired state says so. What is missing is loaded, what is in excess is dropped
once no request can ask for it there any more, and routes name only what is there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from expert_workers.supervision.options import DROP_AFTER
from expert_workers.supervision.worker_state import Keys, SupervisedWorker, Surplus
from moe_model.layers.dispatch import ExpertKey


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
    workers: Iterable[SupervisedWorker], wanted: Mapping[int, Keys], keys: Iterable[ExpertKey]
) -> dict[ExpertKey, tuple[int, ...]]:
    """The ranks that can be asked for each module: those that shall hold it, else one that still does."""
    ready = sorted((w for w in workers if w.is_ready), key=lambda w: (w.is_leaving, w.is_here, w.rank))
    meant: dict[ExpertKey, list[int]] = {}
    spare: dict[ExpertKey, int] = {}
    for worker in ready:
        wish = wanted.get(worker.rank, frozenset())
        for key in worker.held:
            if key in wish:
                meant.setdefault(key, []).append(worker.rank)
            else:
                spare.setdefault(key, worker.rank)
    return {key: tuple(meant[key]) if key in meant else (spare[key],) if key in spare else () for key in keys}


def actions(
    workers: Iterable[SupervisedWorker],
    wanted: Mapping[int, Keys],
    routed: Mapping[int, Keys],
    now: float,
    drop_after: float = DROP_AFTER,
) -> list[Action]:
    """What is to be done now with workers that no job is at. `routed` is what the published routes name;
    `drop_after`: see SupervisorOptions."""
    found: list[Action] = []
    for worker in workers:
        if worker.is_busy:
            continue
        wish = wanted.get(worker.rank, frozenset())
        if not worker.is_ready:
            if not worker.is_leaving and now >= worker.policy.next_at:
                found.append(BringUp(worker.rank))
            elif worker.is_leaving:
                found.append(End(worker.rank))
        elif wish - worker.held and now >= worker.policy.next_at:
            found.append(Load(worker.rank, frozenset(wish - worker.held)))
        else:
            found += _drops(worker, wish, routed.get(worker.rank, frozenset()), now - drop_after)
    return found


def _drops(worker: SupervisedWorker, wish: Keys, routed: Keys, before: float) -> list[Action]:
    """Of what has been in excess since `before`."""
    surplus = worker.surplus
    if surplus is None or surplus.since is None or surplus.since > before:
        return []
    if worker.is_leaving:
        return [End(worker.rank)] if not worker.held & routed else []
    keys = surplus.keys - wish - routed
    return [Drop(worker.rank, keys)] if keys else []


def note_surplus(worker: SupervisedWorker, wish: Keys, routed: Keys, version: int) -> None:
    """After routes were published: what this worker holds though no route leads there."""
    keys = frozenset(worker.held - wish - routed)
    if not worker.is_ready or not (keys or (worker.is_leaving and not worker.held & routed)):
        worker.surplus = None
    elif worker.surplus is None or worker.surplus.keys != keys:
        worker.surplus = Surplus(keys, version)


def note_adopted(workers: Iterable[SupervisedWorker], adopted: int, now: float) -> None:
    """The pool uses routes of this version."""
    for worker in workers:
        surplus = worker.surplus
        if surplus is not None and surplus.since is None and adopted >= surplus.version:
            surplus.since = now


def next_due(workers: Iterable[SupervisedWorker], now: float, drop_after: float = DROP_AFTER) -> float | None:
    """When something is due by the clock alone, in seconds from now; None: nothing is."""
    times = []
    for worker in workers:
        if worker.surplus is not None and not worker.is_busy:
            since = worker.surplus.since
            times.append(drop_after if since is None else since + drop_after - now)
        if not worker.is_ready and not worker.is_busy and not worker.is_leaving:
            times.append(worker.policy.next_at - now)
    return max(0.01, min(times)) if times else None
