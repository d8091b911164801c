"""A plan of `expertmesh plan` in a setting."""

from dataclasses import replace
from pathlib import Path

from coordinator.server.plan_file import PlanFile, read_plan
from moe_model.errors import ConfigError
from scaling.simulation.given import Given, setting_of
from scaling.simulation.setting import CoordinatorPlace, Setting, WorkerPlace


def with_plan(given: Given, path: Path) -> Setting:
    """Raises ConfigError, also for slices, which a simulation does not know."""
    plan = read_plan(path)
    if plan.num_slices > 1:
        raise ConfigError(f"{path}: has experts in {plan.num_slices} slices, which are not simulated")
    if given.machines is None:
        raise ConfigError("--plan is of machines: say --machines FILE as well")
    if given.num_coordinators > 1:
        raise ConfigError("--plan is of one coordinator: leave out --coordinators")
    for option, said in (("dtype", given.engine.dtype), ("expert-dtype", given.engine.expert_dtype)):
        planned = plan.options.get(option, said)
        if planned != said:
            raise ConfigError(f"{path}: is for --{option} {planned}: say it here too, not {said}")
    workers = replace(given.workers, num_workers=len(plan.workers))
    base = setting_of(replace(given, workers=workers))
    plan.check_model(base.config)
    machines = given.machines
    return replace(
        base,
        coordinators=(
            CoordinatorPlace(plan.coordinator, max(1, int(machines.named(plan.coordinator).cores))),
        ),
        workers=tuple(
            WorkerPlace(each.machine, max(1, int(machines.named(each.machine).cores)))
            for each in plan.workers
        ),
        holders=holders_of(plan),
        pool=replace(
            base.pool,
            first_costs={rank: each.cost for rank, each in enumerate(plan.workers)},
            fixed_rows=plan.fixed_rows,
        ),
    )


def holders_of(plan: PlanFile) -> dict[tuple[int, int], tuple[int, ...]]:
    """The ranks of each expert, by layer and number."""
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for rank, worker in enumerate(plan.workers):
        for layer, slots in worker.experts.items():
            for slot in slots:
                found[layer, slot] = (*found.get((layer, slot), ()), rank)
    return found
