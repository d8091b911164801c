"""DesiredState: which worker shall hold which module. Decides with placement.py; loads nothing.

A module that no worker holds at the moment gets an extra holder at once; the next placement counts it in.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from expert_workers.dispatch.routes import HERE
from expert_workers.placement.placement import Placement, Share, moves, place
from expert_workers.placement.planned import Planned
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from moe_model.errors import ConfigError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule

_log = logging.getLogger(__name__)

# Of the memory that is free with a worker, what its experts may take.
_MEMORY_SHARE = 0.8
# How many times longer than a new placement's a layer may take, so that nothing of a plan moves: only what is
# missing is placed.
_STAYS = 1e6
# As `place` has it.
_TOLERANCE = 0.1


class DesiredState:
    """Belongs to the supervisor's thread."""

    def __init__(
        self, modules: Sequence[ExpertModule], replicas: int, redundant: int, planned: Planned | None = None
    ) -> None:
        """`planned` holds while its workers and modules are those that there are. Where they are not, what is
        held stays, and what is missing is placed by the loads and costs that it was made for."""
        self._modules = {module.key: module for module in modules}
        self._replicas = replicas
        self._redundant = redundant if planned is None else max(redundant, planned.redundant)
        self._planned = planned
        self._placement = Placement({})
        self._extra: dict[ExpertKey, int] = {}
        self._placed_for: object = None
        self._num_bytes = 0.0
        self.num_moved = 0

    @property
    def keys(self) -> Keys:
        return frozenset(self._modules)

    @property
    def is_placed(self) -> bool:
        """Whether every module has its place."""
        return self._placement.holders.keys() >= self._modules.keys()

    def modules(self, keys: Iterable[ExpertKey]) -> list[ExpertModule]:
        return [self._modules[key] for key in sorted(keys)]

    def expert_ids(self) -> dict[ExpertKey, int]:
        """What people call each module. Any thread may ask."""
        return {key: module.expert for key, module in list(self._modules.items())}

    def add(self, module: ExpertModule) -> None:
        self._modules[module.key] = module

    def remove(self, keys: Iterable[ExpertKey]) -> None:
        for key in keys:
            self._modules.pop(key, None)
            self._extra.pop(key, None)
        self._placement = Placement({k: r for k, r in self._placement.holders.items() if k in self._modules})

    def wanted(self, workers: Iterable[SupervisedWorker]) -> dict[int, Keys]:
        """By rank, what it shall hold."""
        ready = [w for w in workers if w.is_ready]
        held_by = {w.rank: w.held for w in ready}
        for key, rank in list(self._extra.items()):
            others = [
                r for r in self._placement.holders.get(key, ()) if r != rank and key in held_by.get(r, ())
            ]
            if others or rank not in held_by:
                del self._extra[key]
        wanted: dict[int, set[ExpertKey]] = {}
        for key, ranks in self._placement.holders.items():
            for rank in ranks:
                wanted.setdefault(rank, set()).add(key)
        for key, rank in self._extra.items():
            wanted.setdefault(rank, set()).add(key)
        elsewhere = {key for w in ready if not w.is_here for key in w.held}
        wanted[HERE] = set(held_by.get(HERE, ())) & self.keys - elsewhere
        return {rank: frozenset(keys) for rank, keys in wanted.items()}

    def place(
        self,
        workers: Iterable[SupervisedWorker],
        lost_before: float,
        loads: Mapping[ExpertKey, float] | None,
        costs: Mapping[int, float],
    ) -> bool:
        """A new placement, if there are other workers or modules now, or `loads` to go by; whether it is
        another one. Workers that were lost at `lost_before` are not counted upon."""
        present = [worker for worker in workers if not worker.is_leaving and _is_there(worker, lost_before)]
        placed_for = (frozenset(w.rank for w in present), self.keys)
        if not present or (loads is None and placed_for == self._placed_for):
            return False
        self._placed_for = placed_for
        current = self._with_extra()
        try:
            target = self._target(present, current, loads, costs)
        except ConfigError as error:
            _log.error("the experts stay where they are: %s", error)
            return False
        if target == self._placement:
            return False
        self.num_moved = len(moves(current, target))
        is_first = not self._placement.holders
        self._placement = target
        self._extra.clear()
        _log.log(
            logging.DEBUG if is_first else logging.INFO,
            "experts on workers %s: %d to load",
            ", ".join(map(str, sorted(target.ranks))),
            self.num_moved,
        )
        self._warn_of_few(target)
        return True

    def _target(
        self,
        present: Sequence[SupervisedWorker],
        current: Placement,
        loads: Mapping[ExpertKey, float] | None,
        costs: Mapping[int, float],
    ) -> Placement:
        """Raises ConfigError."""
        planned, tolerance = self._planned, _TOLERANCE
        if loads is None and planned is not None:
            holders = planned.placement.holders
            if planned.costs.keys() == {w.rank for w in present} and holders.keys() == self._modules.keys():
                return planned.placement
            loads, costs, tolerance = planned.loads, planned.costs, _STAYS
        neighbours = Counter(_node(w) for w in present)
        shares = [self._share(w, costs if loads is not None else {}, neighbours[_node(w)]) for w in present]
        return place(
            sorted(self._modules),
            shares,
            self._replicas,
            loads=loads,
            redundant=self._redundant,
            current=current,
            tolerance=tolerance,
        )

    def _warn_of_few(self, target: Placement) -> None:
        """Copies that were asked for and have no place yet."""
        fewest = min(map(len, target.holders.values()), default=self._replicas)
        if fewest < self._replicas:
            _log.warning(
                "%d replicas asked for, %d fit on %d workers; the rest follow when there are more",
                *(self._replicas, fewest, len(target.ranks)),
            )

    def rescue(
        self, keys: AbstractSet[ExpertKey], workers: Iterable[SupervisedWorker], now: float
    ) -> set[ExpertKey]:
        """Gives modules that no worker holds to workers that live; returns those that found one. A worker
        that could not load something and is to wait is not asked."""
        ready = [w for w in workers if w.is_ready and not w.is_leaving and w.policy.next_at <= now]
        counts = {w.rank: len(w.held) + sum(r == w.rank for r in self._extra.values()) for w in ready}
        neighbours = Counter(_node(w) for w in ready)
        room = {w.rank: self._share(w, {}, neighbours[_node(w)]).max_modules for w in ready}
        found = set()
        for key in sorted(keys & self.keys):
            if self._extra.get(key) not in counts:
                fitting = [rank for rank in counts if room[rank] is None or counts[rank] < (room[rank] or 0)]
                if not fitting:
                    continue
                rank = min(fitting, key=lambda r: (counts[r], r))
                self._extra[key] = rank
                counts[rank] += 1
            found.add(key)
        return found

    def _with_extra(self) -> Placement:
        holders = dict(self._placement.holders)
        for key, rank in self._extra.items():
            holders[key] = (*(r for r in holders.get(key, ()) if r != rank), rank)
        return Placement(holders)

    def _share(self, worker: SupervisedWorker, costs: Mapping[int, float], neighbours: int) -> Share:
        """So many workers, itself among them, share the memory of its machine."""
        info = worker.info
        if info is None:
            return Share(worker.rank)
        if info.keys:
            self._num_bytes = max(self._num_bytes, info.num_bytes / len(info.keys))
        room = None
        if self._num_bytes:
            room = len(info.keys) + int(_MEMORY_SHARE * info.free_bytes / neighbours / self._num_bytes)
        return Share(worker.rank, 1.0 / costs.get(worker.rank, 1.0), room, info.node_id)


def _node(worker: SupervisedWorker) -> str:
    return "" if worker.info is None else worker.info.node_id


def _is_there(worker: SupervisedWorker, lost_before: float) -> bool:
    return worker.is_ready or (worker.lost_at is not None and worker.lost_at > lost_before)
