"""What is planned for, and the problem of placing experts that follows from it.

Shapes: L layers with experts, E experts, M workers, as in problem.py; D d_model.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import floor

import msgspec
import numpy as np
import torch

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.footprint import PROCESS_BYTES, Footprint, footprint
from moe_model.names import DtypeName, WeightForm
from scaling.costs.base import NodeCosts
from scaling.costs.choose import costs_of
from scaling.machines import Machine, Machines, Path
from scaling.planning.loads import Floats
from scaling.planning.problem import GRID, Problem, expert_times
from scaling.shape import Shape

# Of a machine's memory beside its processes, what experts may take, as the product has it
# (expert_workers/supervision/desired_state.py).
MEMORY_SHARE = 0.8
DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """`chance_LE`: of a row, to be one of each expert. `context`: positions of a sequence, for memory and
    attention. `num_copies`: of each expert, on different machines. `holds_too`: whether the machine that
    coordinates has a worker as well."""

    shape: Shape
    config: ModelConfig
    machines: Machines
    chance_LE: Floats
    coordinator: str
    dtype: DtypeName = "bfloat16"
    form: WeightForm = "model"
    context: int = 1024
    num_rows: int = 1
    num_copies: int = 1
    num_slices: int = 1
    holds_too: bool = True

    def with_(self, **changes: object) -> "Setting":
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def footprint(self) -> Footprint:
        return footprint(self.config, DTYPES[self.dtype], self.form)

    @property
    def module_bytes(self) -> float:
        """Of one expert, or of one slice of one."""
        return self.footprint.expert_bytes / self.num_slices

    @property
    def process_bytes(self) -> int:
        """Of a worker that holds nothing."""
        return PROCESS_BYTES

    @property
    def coordinator_bytes(self) -> int:
        return self.footprint.coordinator_bytes(self.num_rows * self.context)

    @property
    def form_of_experts(self) -> str:
        return self.dtype if self.form == "model" else self.form

    def costs(self, machine: Machine) -> NodeCosts:
        return _costs(machine, self.shape, self.form_of_experts, self.dtype)

    @property
    def own_costs(self) -> NodeCosts:
        """Of the machine that coordinates."""
        return self.costs(self.machines.named(self.coordinator))

    @property
    def workers(self) -> tuple[Machine, ...]:
        """The machines that have a worker, one each, by rank."""
        return tuple(m for m in self.machines.machines if self.holds_too or m.name != self.coordinator)

    def path(self, machine: Machine) -> Path:
        return self.machines.path(self.coordinator, machine.name)

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Of a row on its way to a worker, and of what comes back for a pair: expert_workers/wire.py."""
        return 4 * self.shape.d_model, 4 * self.shape.d_model

    def problem(self) -> Problem:
        """Raises ConfigError where the network of a machine is not known, or the coordinator has no room."""
        kinds: dict[tuple[object, ...], int] = {}
        tables, kind_M, start_M, room_M = list[Floats](), list[int](), list[float](), list[int]()
        out, back = self.row_bytes
        for machine in self.workers:
            path, costs = self.path(machine), self.costs(machine)
            key = (kind_of(machine), path.gbit)
            if key not in kinds:
                kinds[key] = len(kinds)
                wire = np.array(_ROWS) * (out + back) * 8e-9 / path.gbit
                answered = np.array(_ROWS) * (costs.answer(out, back) - costs.answer(0, 0))
                tables.append(expert_times([costs], self.num_slices)[0] + wire + np.maximum(answered, 0))
            kind_M.append(kinds[key])
            start_M.append(1e-6 * path.round_trip_us + costs.answer(0, 0))
            room_M.append(self.room(machine))
        return Problem(
            np.repeat(self.chance_LE, self.num_slices, axis=1),
            self.num_rows,
            np.array(tables),
            np.array(kind_M),
            np.array(room_M),
            np.array(start_M),
            self.num_copies,
            self.num_slices,
        )

    def room(self, machine: Machine) -> int:
        """Modules that fit into a worker there."""
        used = PROCESS_BYTES + (self.coordinator_bytes if machine.name == self.coordinator else 0)
        return max(0, floor(MEMORY_SHARE * (1e9 * machine.memory_gb - used) / self.module_bytes))

    def check_coordinator(self) -> None:
        """Raises ConfigError."""
        machine = self.machines.named(self.coordinator)
        lacking = self.coordinator_bytes - 1e9 * machine.memory_gb
        if lacking > 0:
            raise ConfigError(
                f"{self.coordinator} cannot coordinate: needs {lacking / 1e9:.1f} GB more of memory "
                f"for what is no expert and a cache of {self.num_rows} sequences of {self.context} tokens"
            )


def kind_of(machine: Machine) -> tuple[object, ...]:
    """What of a machine decides its times: equal for machines of one kind."""
    values = msgspec.structs.asdict(machine)
    return tuple(value for name, value in values.items() if name not in ("name", "memory_gb", "fit"))


@lru_cache(4096)
def _costs(machine: Machine, shape: Shape, form: str, shared_form: str) -> NodeCosts:
    return costs_of(machine, shape, form=form, shared_form=shared_form)


_ROWS = GRID
