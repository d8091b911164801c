"""A plan as text for a terminal."""

from collections.abc import Iterator

from scaling.planning.choose import Plan
from scaling.planning.step import DRAFT
from scaling.planning.what_if import Change
from scaling.planning.write import memory_gb

# More machines than these are summed up.
_MOST_ROWS = 24


def report(plan: Plan, others: list[Change]) -> Iterator[str]:
    """Lines."""
    yield from _options(plan)
    yield ""
    yield from _step(plan)
    yield ""
    yield from _placement(plan)
    yield ""
    yield from _machines(plan)
    for note in plan.notes:
        yield f"note: {note}"
    if others:
        yield ""
        yield "what would change it, each planned anew for the same batch:"
    for each in others:
        yield f"  {each.name:32} {_gain(plan, each)}"


def _options(plan: Plan) -> Iterator[str]:
    setting, number = plan.setting, plan.survives
    yield f"{setting.shape.name}: {len(setting.workers)} workers, {setting.coordinator} coordinates"
    yield (
        f"  {setting.num_rows} sequences at once, {setting.dtype}, experts {setting.form}, "
        f"{_slices(setting.num_slices)}"
    )
    lost = "any machine" if number == 1 else f"any {number} machines"
    yield f"  survives the loss of {lost} with experts" if number else "  survives no loss of a machine"
    share = 100 * plan.break_even
    yield (
        f"  --micro-batches {plan.micro_batches}, --speculate {plan.speculate}, which pays where "
        f"{share:.0f} % of {DRAFT} drafted tokens are right"
    )


def _step(plan: Plan) -> Iterator[str]:
    step = plan.step
    yield (
        f"predicted: {step.tokens_per_s:.1f} tokens/s, {1e3 * step.seconds:.3g} ms between two tokens; "
        f"binds: {step.binds}"
    )
    for name, seconds in step.parts.items():
        yield f"  {name:32} {1e3 * seconds:10.3f} ms  {100 * seconds / step.seconds:3.0f} %"


def _placement(plan: Plan) -> Iterator[str]:
    solution = plan.solution
    yield (
        f"experts, by {solution.method}: {1e3 * solution.seconds:.3f} ms a step, "
        f"{100 * solution.above_bound:.1f} % above a bound that no placement beats"
    )
    if solution.gap is not None:
        yield f"  the solver's own gap, for mean loads: {100 * solution.gap:.2f} %"
    for name, seconds in solution.others.items():
        times = seconds / solution.seconds
        yield f"  {name:32} {1e3 * seconds:10.3f} ms  {times:.2f} times as long"


def _slices(number: int) -> str:
    return "whole" if number == 1 else f"in {number} slices"


def _gain(plan: Plan, change: Change) -> str:
    if change.plan is None:
        return f"cannot be: {change.why}"
    rate, before = change.plan.step.tokens_per_s, plan.step.tokens_per_s
    return f"{rate:10.1f} tokens/s  {100 * (rate / before - 1):+.1f} %; binds: {change.plan.step.binds}"


def _machines(plan: Plan) -> Iterator[str]:
    setting, used = plan.setting, memory_gb(plan)
    held: dict[str, int] = {}
    for row in plan.solution.holders:
        for ranks in row:
            for rank in ranks:
                name = setting.workers[rank].name
                held[name] = held.get(name, 0) + 1
    yield f"{'machine':20} {'experts':>8} {'memory':>18}  a row costs"
    costs = {machine.name: plan.solution.costs[rank] for rank, machine in enumerate(setting.workers)}
    for machine in setting.machines.machines[:_MOST_ROWS]:
        role = "  coordinates" if machine.name == setting.coordinator else ""
        cost = f"{costs[machine.name]:11.2f}" if machine.name in costs else " " * 11
        taken = f"{used.get(machine.name, 0.0):.1f} of {machine.memory_gb:.1f} GB"
        yield f"{machine.name[:20]:20} {held.get(machine.name, 0):8} {taken:>18}  {cost}{role}"
    if len(setting.machines.machines) > _MOST_ROWS:
        yield f"and {len(setting.machines.machines) - _MOST_ROWS} more machines"
