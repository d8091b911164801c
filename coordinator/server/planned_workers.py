"""The workers of a plan: which machine of the cluster each is on, and what it shall hold.

Part of the composition root, with main.py.
"""

import time

from coordinator.config.workers import WorkersConfig
from coordinator.server.phases import Phases
from coordinator.server.plan_file import PlanFile, read_plan
from expert_workers.placement.placement import Placement
from expert_workers.placement.planned import Planned
from expert_workers.transports.fleet import Fleet
from moe_model.config import ModelConfig
from moe_model.errors import ClusterError
from moe_model.halt import Halt
from moe_model.layers.dispatch import ExpertKey

# Between two looks for machines.
_LOOK_SECONDS = 0.25


def read_planned(workers: WorkersConfig, config: ModelConfig) -> PlanFile | None:
    """Raises ConfigError for a plan that is none, or is another model's."""
    if workers.plan is None:
        return None
    plan = read_plan(workers.plan)
    plan.check_model(config)
    return plan


def planned_of(plan: PlanFile) -> Planned:
    """As the supervisor takes it. The first holder of a module is the quickest."""
    holders: dict[ExpertKey, list[int]] = {}
    for rank in sorted(range(len(plan.workers)), key=lambda rank: (plan.workers[rank].cost, rank)):
        for layer, slots in plan.workers[rank].experts.items():
            for slot in slots:
                holders.setdefault((layer, slot), []).append(rank)
    loads = {
        (layer, slot): load
        for layer, row in zip(plan.model.layers, plan.loads, strict=True)
        for slot, load in enumerate(row)
    }
    costs = {rank: worker.cost for rank, worker in enumerate(plan.workers)}
    return Planned(Placement({key: tuple(holders[key]) for key in sorted(holders)}), loads, costs)


def nodes_of(
    plan: PlanFile, fleet: Fleet, workers: WorkersConfig, halt: Halt, phases: Phases
) -> dict[int, str]:
    """By rank, the node of its machine, once all of them are in the cluster. Raises ConfigError, ClusterError
    that names the first that is not after `--start-timeout`, HaltedError."""
    addresses = plan.addresses(workers.plan_machines)
    deadline, before = time.monotonic() + workers.start_timeout, -1
    while True:
        fleet.check()
        there = {m.address: m.node_id for m in fleet.machines() if not m.is_leaving}
        missing = [name for name, address in addresses.items() if address not in there]
        if not missing:
            nodes = {name: there[address] for name, address in addresses.items()}
            return {rank: nodes[worker.machine] for rank, worker in enumerate(plan.workers)}
        if time.monotonic() >= deadline:
            name = missing[0]
            raise ClusterError(
                f"machine {name!r} of the plan, {addresses[name]}, is not in the cluster after "
                f"{workers.start_timeout:g} s: start expertmesh join, or a Ray node with CPUs, on it, or say "
                f"where it is (--plan-machine {name}=ADDRESS)"
            )
        if len(missing) != before:
            phases(f"machines of the plan: {len(addresses) - len(missing)} of {len(addresses)}")
        before = len(missing)
        halt.wait(_LOOK_SECONDS)
