"""Workers of a simulation: what each holds and costs, whether it is there, and its cores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from msgspec import structs
from simpy import Environment, Resource

from expert_workers.placement.placement import Placement, Share, place
from expert_workers.transports.base import Failure
from moe_model.layers.dispatch import ExpertKey
from scaling.costs.base import NodeCosts
from scaling.costs.forms import weight_bytes
from scaling.machines import Machine
from scaling.shape import Shape
from scaling.simulation.machine import Cores, Group
from scaling.simulation.setting import Setting, WorkerPlace

# More (module, worker) pairs than these take the product's placement minutes; see `even_holders`.
MOST_PLACED = 2_000_000

Holders = Mapping[ExpertKey, tuple[int, ...]]


@dataclass(eq=False)
class SimWorker:
    """As `expert_workers.transports.base.Link` it is what a coordinator knows of it: `rank` and `failure`.

    `whole`: costs with all cores of its machine; `turn`: one call at a time. `experts_s` remembers what calls
    of some rows cost."""

    rank: int
    place: WorkerPlace
    costs: NodeCosts
    whole: NodeCosts
    cores: Cores
    group: Group
    turn: Resource
    failure: Failure | None = None
    experts_s: dict[tuple[int, ...], float] = field(default_factory=dict)
    weights: dict[tuple[int, ...], float] = field(default_factory=dict)

    def seconds(self, rows: Iterable[int]) -> float:
        """Of one call's experts with so many rows each, in any order."""
        key = tuple(sorted(rows))
        found = self.experts_s.get(key)
        if found is None:
            found = self.experts_s[key] = self.costs.experts(key)
        return found

    def weight(self, rows: Iterable[int]) -> float:
        """How many of its machine's cores a call of these rows is worth: see Cores."""
        if self.place.threads >= self.cores.num:
            return self.cores.num
        key = tuple(sorted(rows))
        found = self.weights.get(key)
        if found is None:
            found = self.weights[key] = (
                self.cores.num * self.whole.experts(key) / max(self.seconds(key), 1e-30)
            )
        return found

    def look(self) -> None:
        """As Link: nothing is taken in, a simulation knows."""


def first_holders(setting: Setting, shape: Shape) -> Holders:
    """As the plan says, else as the product places experts at the start. Raises ConfigError."""
    if setting.holders is not None:
        return setting.holders
    keys = [(layer, expert) for layer in shape.moe_layers for expert in range(shape.n_experts)]
    ranks = range(len(setting.workers))
    limited = any(worker.max_modules is not None for worker in setting.workers)
    if (
        len(keys) * len(ranks) > MOST_PLACED
        and setting.replicas == 1
        and not setting.redundant
        and not limited
    ):
        return even_holders(keys, len(ranks))
    return place(keys, shares(setting, ranks), setting.replicas, redundant=setting.redundant).holders


def even_holders(keys: Iterable[ExpertKey], num_workers: int) -> Holders:
    """One after the other, on from where the layer before ended: as even, in each layer and in memory, as the
    product's placement of experts that are alike, on workers that are."""
    return {key: (number % num_workers,) for number, key in enumerate(keys)}


def shares(setting: Setting, ranks: Iterable[int]) -> list[Share]:
    places = setting.workers
    return [Share(rank, max_modules=places[rank].max_modules, node=places[rank].machine) for rank in ranks]


def holders_without(setting: Setting, now: Holders, lost: Iterable[int]) -> Holders:
    """Where experts are when workers are gone and those that only they held have been loaded on others."""
    gone = set(lost)
    left = [rank for rank in range(len(setting.workers)) if rank not in gone]
    kept = Placement(now).without(gone)
    if not left:
        return kept.holders
    found = place(kept.holders, shares(setting, left), setting.replicas, current=kept, tolerance=1e9)
    return found.holders


def load_seconds(setting: Setting, shape: Shape, before: Holders, after: Holders, rank: int) -> float:
    """Of the experts that a worker did not hold, from its machine's disk; 0 where nothing says its rate."""
    num_new = sum(rank in ranks and rank not in before.get(key, ()) for key, ranks in after.items())
    rate = setting.machines.named(setting.workers[rank].machine).disk_mb_per_s
    if rate is None:
        return 0.0
    return num_new * shape.expert_params * weight_bytes(setting.form) / (1e6 * rate)


def make_workers(
    setting: Setting, shape: Shape, env: Environment, cores: Mapping[str, Cores]
) -> list[SimWorker]:
    found = []
    known: dict[tuple[Machine, float], tuple[NodeCosts, NodeCosts, dict[tuple[int, ...], float]]] = {}
    by_name = {machine.name: machine for machine in setting.machines.machines}
    for rank, where in enumerate(setting.workers):
        machine = cores[where.machine]
        # Machines that differ in nothing but their names have the same costs.
        alike = structs.replace(by_name[where.machine], name="alike"), where.threads
        if alike not in known:
            whole = setting.costs(replace(where, threads=machine.num), shape)
            known[alike] = setting.costs(where, shape), whole, {}
        costs, whole, experts_s = known[alike]
        group = machine.group(where.quota, setting.period_s)
        found.append(SimWorker(rank, where, costs, whole, machine, group, Resource(env), experts_s=experts_s))
    return found
