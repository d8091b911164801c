"""A plan as the file that `serve --plan` reads (coordinator/server/plan_file.py), and for programs."""

import ipaddress
import json
from pathlib import Path
from typing import Any

from coordinator.server.plan_file import VERSION, parse_plan
from scaling.planning.choose import Plan
from scaling.planning.what_if import Change
from scaling.store import write_whole


def plan_data(plan: Plan) -> dict[str, Any]:
    """What the file says. Raises ConfigError where a server would not read it."""
    setting, shape = plan.setting, plan.setting.shape
    data = {
        "version": VERSION,
        "model": {
            "family": shape.family,
            "d_model": shape.d_model,
            "layers": list(shape.moe_layers),
            "experts": shape.n_experts,
            "top_k": shape.top_k,
        },
        "coordinator": setting.coordinator,
        "machines": {machine.name: _address(machine.name) for machine in setting.machines.machines},
        "options": {
            "workers": len(setting.workers),
            "replicas": setting.num_copies,
            "dtype": setting.dtype,
            "expert-dtype": setting.form,
            "expert-slices": setting.num_slices,
            "micro-batches": plan.micro_batches,
            "speculate": plan.speculate,
            "max-batch": setting.num_rows,
            "rebalance-interval": 0,
        },
        "fixed_rows": _short(plan.solution.fixed_rows),
        "loads": [
            [_short(chance) for chance in row for _ in range(setting.num_slices)]
            for row in setting.chance_LE.tolist()
        ],
        "workers": [
            {
                "machine": machine.name,
                "cost": _short(plan.solution.costs[rank]),
                "experts": _experts(plan, rank),
            }
            for rank, machine in enumerate(setting.workers)
        ],
        "predicted": predicted(plan),
    }
    parse_plan(data)
    return data


def write_plan(plan: Plan, path: Path) -> None:
    """The old file or the new one, never a part. Raises ConfigError, OSError."""
    write_whole(path, (json.dumps(plan_data(plan)) + "\n").encode())


def predicted(plan: Plan) -> dict[str, Any]:
    """In units that their names say."""
    step = plan.step
    return {
        "tokens_per_s": _short(step.tokens_per_s),
        "gap_ms": _short(1e3 * step.seconds),
        "binds": step.binds,
        "parts_ms": {name: _short(1e3 * seconds) for name, seconds in step.parts.items()},
        "survives": plan.survives,
        "memory_gb": {name: _short(used) for name, used in memory_gb(plan).items()},
    }


def memory_gb(plan: Plan) -> dict[str, float]:
    """By machine, with the processes that are there."""
    setting = plan.setting
    held = [0] * len(setting.workers)
    for row in plan.solution.holders:
        for ranks in row:
            for rank in ranks:
                held[rank] += 1
    found = {setting.coordinator: setting.coordinator_bytes / 1e9}
    for machine, num in zip(setting.workers, held, strict=True):
        of_worker = setting.process_bytes + num * setting.module_bytes
        found[machine.name] = found.get(machine.name, 0.0) + of_worker / 1e9
    return found


def report_data(plan: Plan, others: list[Change]) -> dict[str, Any]:
    """For `--json`: what is printed, without the placement."""
    seconds = plan.solution.seconds
    return {
        "coordinator": plan.setting.coordinator,
        "options": plan_data(plan)["options"],
        "predicted": predicted(plan),
        "method": plan.solution.method,
        "above_bound": _short(plan.solution.above_bound),
        "exact_gap": plan.solution.gap,
        "experts_ms": _short(1e3 * seconds),
        "others_ms": {name: _short(1e3 * each) for name, each in plan.solution.others.items()},
        "speculation_break_even": _short(plan.break_even),
        "notes": plan.notes,
        "what_if": {
            each.name: predicted(each.plan) if each.plan is not None else {"impossible": each.why}
            for each in others
        },
    }


def _experts(plan: Plan, rank: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for layer, row in zip(plan.setting.shape.moe_layers, plan.solution.holders, strict=True):
        slots = [slot for slot, ranks in enumerate(row) if rank in ranks]
        if slots:
            found[str(layer)] = slots
    return found


def _address(name: str) -> str | None:
    """A machine that is called by its address is known by it."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return None


def _short(value: float) -> float:
    return float(f"{value:.6g}")
