"""Which worker holds which expert. Pure; knows no process and no tensor.

A module is one expert of one layer. The load of a module is shared by its copies in proportion to their
workers' speeds, so a worker's time for a layer is its modules' loads over the speeds of their holders, and a
layer takes as long as its slowest worker.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from expert_workers.placement.placement_problem import DraftPlacement, PlacementProblem, Share, wanted_copies
from expert_workers.placement.rebalance import (
    STEPS,
    STEPS_OF_LOADED,
    even_memory,
    fill,
    quicken,
    repair,
    spread_nodes,
    welcome,
)
from moe_model.layers.dispatch import ExpertKey

__all__ = ["Placement", "Share", "balance", "drops", "moves", "place"]

# A new placement is swapped and moved about until the slowest worker takes this much longer than the mean.
_EVEN = 1.01


@dataclass(frozen=True, slots=True)
class Placement:
    """`holders[key]` are the ranks that hold a module, the primary first."""

    holders: Mapping[ExpertKey, tuple[int, ...]]

    @property
    def ranks(self) -> frozenset[int]:
        """The workers that hold anything."""
        return frozenset(rank for ranks in self.holders.values() for rank in ranks)

    def experts_of(self, rank: int) -> tuple[ExpertKey, ...]:
        """The modules a worker holds, by layer and slot."""
        return tuple(sorted(key for key, ranks in self.holders.items() if rank in ranks))

    def layers_of(self, rank: int) -> dict[int, tuple[int, ...]]:
        """layer -> the slots of it that a worker holds; layers of which it holds none are left out."""
        layers: dict[int, list[int]] = {}
        for layer, slot in self.experts_of(rank):
            layers.setdefault(layer, []).append(slot)
        return {layer: tuple(slots) for layer, slots in layers.items()}

    def without(self, ranks: Collection[int]) -> "Placement":
        """What is left when these workers are gone; a module may be left without a holder."""
        return Placement(
            {key: tuple(rank for rank in held if rank not in ranks) for key, held in self.holders.items()}
        )


def place(
    keys: Iterable[ExpertKey],
    workers: Sequence[Share],
    replicas: int,
    *,
    loads: Mapping[ExpertKey, float] | None = None,
    redundant: int = 0,
    current: Placement | None = None,
    tolerance: float = 0.1,
) -> Placement:
    """Puts each module on `replicas` workers, or on as many as there are and their memory allows.

    Every module gets its first holder before any gets a second. Each layer's `redundant` further copies go to
    the modules with the most load per copy, as DeepSeek's EPLB has it. `loads` are relative; a module that
    they do not name weighs as much as the mean of its layer. Copies of a module are on other nodes if they
    can. Then the time of the workers in each layer is made even, then the number of modules they hold.

    With `current`, what is held stays where it is and only what is missing is placed, unless the layers would
    take more than 1 + tolerance times what a new placement takes; then few modules move, until they do not.
    Memory is evened to the same tolerance, or one module, and a worker that holds not half of what it would
    hold in a new placement is given its part. Raises ConfigError.
    """
    problem = PlacementProblem.of(keys, workers, replicas, loads)
    fresh = DraftPlacement(problem, wanted_copies(problem, redundant, {}))
    _settle(fresh)
    if current is None:
        return Placement(fresh.result())
    held = {
        key: tuple(rank for rank in current.holders.get(key, ()) if rank in problem.speed)
        for key in problem.keys
    }
    kept = DraftPlacement(problem, wanted_copies(problem, redundant, held))
    kept.keep(held)
    _settle(kept)
    return Placement((kept if _mend(kept, fresh, tolerance) else fresh).result())


def moves(old: Placement, new: Placement) -> list[tuple[ExpertKey, int]]:
    """What must be loaded where before `new` can be used, sorted."""
    return sorted(
        (key, rank)
        for key, ranks in new.holders.items()
        for rank in ranks
        if rank not in old.holders.get(key, ())
    )


def drops(old: Placement, new: Placement) -> list[tuple[ExpertKey, int]]:
    """What can be unloaded where once only `new` is used, sorted."""
    return moves(new, old)


def balance(placement: Placement, shares: Sequence[Share], loads: Mapping[ExpertKey, float] | None) -> float:
    """The time of all layers if every worker were always busy, over the time they take: 1.0 is even.

    Modules without a holder among the shares are left out. Raises ConfigError.
    """
    ranks = {share.rank for share in shares}
    served = {key: tuple(r for r in held if r in ranks) for key, held in placement.holders.items()}
    problem = PlacementProblem.of((key for key, held in served.items() if held), shares, 1, loads)
    draft = DraftPlacement(problem, {})
    for key in problem.load:
        draft.put(key, served[key])
    return sum(map(problem.mean_of, problem.layers)) / draft.time if problem.layers else 1.0


def _settle(draft: DraftPlacement) -> None:
    """Places what is missing, and moves what is not pinned about until it is even."""
    fill(draft)
    repair(draft)
    spread_nodes(draft)
    for layer in draft.problem.layers:
        quicken(draft, layer, _EVEN * draft.problem.mean_of(layer), STEPS)
    even_memory(draft, 0)


def _mend(kept: DraftPlacement, fresh: DraftPlacement, tolerance: float) -> bool:
    """Moves pinned modules until `tolerance` is kept; false if it cannot be."""
    kept.pinned.clear()
    factor = 1 + tolerance + 1e-9
    excess = {layer: kept.time_of(layer) - fresh.time_of(layer) for layer in kept.problem.layers}
    for layer in sorted(excess, key=lambda layer: (-excess[layer], layer)):
        if not kept.time > factor * fresh.time:
            break
        quicken(kept, layer, factor * fresh.time_of(layer), STEPS_OF_LOADED)
    if kept.time > factor * fresh.time:
        return False
    for rank, due in fresh.total.items():
        if kept.total[rank] < int(due / max(2.0, factor)):
            for layer in kept.problem.layers:
                welcome(kept, layer, rank, kept.problem.mean_of(layer) / factor)
    most = max(fresh.total.values())
    even_memory(kept, max(most + 1, factor * most))
    return True
