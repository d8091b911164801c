"""Which workers there shall be, on which machines. Pure.

A worker that is bound to a machine ends with it; another one runs wherever the cluster has put it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from expert_workers.supervision.worker_state import SupervisedWorker
from expert_workers.transports.fleet import Machine


@dataclass(frozen=True, slots=True)
class Crew:
    """The ranks that shall stay, and the machine of each worker that shall come; None: any machine."""

    staying: frozenset[int]
    coming: tuple[str | None, ...] = ()


def crew_of(
    workers: Iterable[SupervisedWorker], machines: Sequence[Machine] | None, num_workers: int, per_node: int
) -> Crew:
    """`per_node` workers for each machine, or where that is 0 so many in all. Those with the lowest ranks
    stay. `machines` None: they are not known, and none is leaving."""
    leaving = {machine.node_id for machine in machines or () if machine.is_leaving}
    known = None if machines is None else {machine.node_id for machine in machines}
    able = [w for w in sorted(workers, key=_rank) if _is_able(w, leaving, known)]
    free = sorted(set(known or ()) - leaving)
    if per_node:
        return _each(able, free, per_node)
    return _in_all(able, free if known is not None else None, num_workers)


def _is_able(worker: SupervisedWorker, leaving: set[str], known: set[str] | None) -> bool:
    """Its machine is there and stays, as far as that is known."""
    is_gone = known is not None and worker.bound_to is not None and worker.bound_to not in known
    return worker.machine not in leaving and not is_gone


def _each(able: Sequence[SupervisedWorker], free: Sequence[str], per_node: int) -> Crew:
    """One whose machine is not known yet stays until it is."""
    staying, coming = {w.rank for w in able if w.machine not in free}, list[str | None]()
    for node_id in free:
        there = [w.rank for w in able if w.machine == node_id]
        staying.update(there[:per_node])
        coming += [node_id] * (per_node - len(there))
    return Crew(frozenset(staying), tuple(coming))


def _in_all(able: Sequence[SupervisedWorker], free: Sequence[str] | None, num_workers: int) -> Crew:
    """New ones go where the fewest are; nowhere, where all machines leave."""
    staying = able[:num_workers]
    ranks, num_coming = frozenset(w.rank for w in staying), num_workers - len(staying)
    if free is None:
        return Crew(ranks, (None,) * num_coming)
    counts = Counter(dict.fromkeys(free, 0))
    counts.update(w.machine for w in staying if w.machine is not None and w.machine in counts)
    coming = list[str]()
    for _ in range(num_coming if free else 0):
        coming.append(min(free, key=lambda each: (counts[each], each)))
        counts[coming[-1]] += 1
    return Crew(ranks, tuple(coming))


def _rank(worker: SupervisedWorker) -> int:
    return worker.rank
