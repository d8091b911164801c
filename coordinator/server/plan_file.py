"""A plan of `expertmesh plan`, as a server reads it: which worker holds what, on which machine, with which
options. JSON that another machine or a person may have written; what it says is checked, key by key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_model.checks import check_count, check_known, check_number
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief, loads

VERSION = 1
# Options of `serve` that a plan may set.
OPTIONS = (
    *("workers", "replicas", "expert-slices", "dtype", "expert-dtype", "micro-batches", "speculate"),
    *("max-batch", "max-gap", "rebalance-interval", "wire-dtype", "combine"),
)
_MAX_BYTES, _MAX_LAYERS, _MAX_MODULES, _MAX_WORKERS, _MAX_TEXT = 256 << 20, 10_000, 1 << 16, 100_000, 200
_KEYS = {
    *("version", "model", "options", "workers", "machines", "coordinator", "fixed_rows", "loads"),
    "predicted",
}


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """What must be a model's for the plan to be of it. `layers`: the numbers of those with experts."""

    family: str
    d_model: int
    layers: tuple[int, ...]
    experts: int
    top_k: int

    @classmethod
    def of(cls, config: ModelConfig) -> "PlannedModel":
        layers = tuple(config.moe_layers)
        return cls(config.family, config.d_model, layers, config.n_experts, config.top_k)


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """`cost`: what a row costs it, relative to the others; `experts`: of each layer, the slots (of slices,
    the slots of these) that it holds."""

    machine: str
    cost: float
    experts: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PlanFile:
    """`machines`: the address of each in its cluster, None where the plan does not know it. `loads`:
    relative, of each module of each layer with experts."""

    model: PlannedModel
    options: Mapping[str, str]
    workers: tuple[PlannedWorker, ...]
    machines: Mapping[str, str | None]
    coordinator: str
    fixed_rows: float
    loads: tuple[tuple[float, ...], ...]

    @property
    def num_slices(self) -> int:
        return len(self.loads[0]) // self.model.experts

    def check_model(self, config: ModelConfig) -> None:
        """Raises ConfigError where the plan is of another model."""
        found = PlannedModel.of(config)
        for name in PlannedModel.__slots__:
            planned, here = getattr(self.model, name), getattr(found, name)
            if planned != here:
                raise ConfigError(
                    f"the plan is of another model: {name} {_brief(planned)}, not {_brief(here)}"
                )

    def addresses(self, given: Sequence[str]) -> dict[str, str]:
        """Machine -> address, of those that have workers; `given`: NAME=ADDRESS each, before the plan's own.
        Raises ConfigError."""
        found = {name: address for name, address in self.machines.items() if address is not None}
        for text in given:
            name, mark, address = text.partition("=")
            if not mark or not address:
                raise ConfigError(f"--plan-machine {text!r}: expected NAME=ADDRESS")
            if name not in self.machines:
                names = ", ".join(sorted(self.machines)[:10])
                raise ConfigError(f"--plan-machine {text!r}: the plan has no machine {name!r}, but {names}")
            found[name] = address
        needed = {worker.machine for worker in self.workers}
        for name in sorted(needed - found.keys()):
            raise ConfigError(
                f"nothing says which machine of the cluster {name!r} of the plan is: "
                f"--plan-machine {name}=ADDRESS"
            )
        return {name: found[name] for name in sorted(needed)}


def read_plan(path: Path) -> PlanFile:
    """Raises ConfigError, a line that names the file and the key."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"plan {path}: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"plan {path}: more than {_MAX_BYTES >> 20} MiB")
    try:
        return parse_plan(loads(data))
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"plan {path}: {error}") from None


def parse_plan(data: Any) -> PlanFile:
    """Raises ConfigError, a line that names the key."""
    found = _object(data, "plan", _KEYS, _KEYS - {"predicted"})
    if found["version"] != VERSION:
        raise ConfigError(f"version: {brief(found['version'])} is not {VERSION}, which this server reads")
    model = _model(found["model"])
    workers = tuple(
        _worker(each, f"workers: {rank}") for rank, each in enumerate(_list(found, "workers", _MAX_WORKERS))
    )
    machines = {
        _text(name, "machines"): None if value is None else _text(value, f"machines: {_brief(name)}")
        for name, value in _any_object(found["machines"], "machines").items()
    }
    check_number("fixed_rows", found["fixed_rows"], 0, 1e6)
    options = _options(found["options"])
    rows = tuple(
        tuple(_list_of_numbers(row, f"loads: {n}"))
        for n, row in enumerate(_list(found, "loads", _MAX_LAYERS))
    )
    coordinator = _text(found["coordinator"], "coordinator")
    plan = PlanFile(model, options, workers, machines, coordinator, float(found["fixed_rows"]), rows)
    _check_whole(plan)
    return plan


def _check_whole(plan: PlanFile) -> None:
    """Raises ConfigError for parts that do not fit each other."""
    model, rows = plan.model, plan.loads
    if len(rows) != len(model.layers) or len({len(row) for row in rows}) != 1:
        raise ConfigError(f"loads: expected {len(model.layers)} lists of one length")
    num_slices, rest = divmod(len(rows[0]), model.experts)
    if rest or str(num_slices) != plan.options.get("expert-slices", "1"):
        raise ConfigError(
            f"loads: {len(rows[0])} of a layer are not those of {model.experts} experts' slices"
        )
    if str(len(plan.workers)) != plan.options.get("workers"):
        raise ConfigError(f"options: workers: is not {len(plan.workers)}, as many as there are in the plan")
    for rank, worker in enumerate(plan.workers):
        if worker.machine not in plan.machines:
            raise ConfigError(f"workers: {rank}: machine: {_brief(worker.machine)} is not among the machines")
    held = {
        (layer, slot) for worker in plan.workers for layer, slots in worker.experts.items() for slot in slots
    }
    wanted = {(layer, slot) for layer in model.layers for slot in range(len(rows[0]))}
    for layer, slot in sorted(held - wanted):
        raise ConfigError(f"workers: layer {layer} has no expert in slot {slot}")
    for layer, slot in sorted(wanted - held):
        raise ConfigError(f"workers: no worker holds slot {slot} of layer {layer}")


def _model(value: Any) -> PlannedModel:
    keys = set(PlannedModel.__slots__)
    found = _object(value, "model", keys, keys)
    for name in ("d_model", "experts", "top_k"):
        check_count(f"model: {name}", found[name], 1 << 24)
    layers = _list(found, "layers", _MAX_LAYERS, "model: layers")
    for layer in layers:
        _check_index("model: layers", layer, _MAX_LAYERS)
    if not layers or list(layers) != sorted(set(layers)):
        raise ConfigError("model: layers: expected numbers in their order")
    family = _text(found["family"], "model: family")
    return PlannedModel(family, found["d_model"], tuple(layers), found["experts"], found["top_k"])


def _worker(value: Any, where: str) -> PlannedWorker:
    keys = set(PlannedWorker.__slots__)
    found = _object(value, where, keys, keys)
    check_number(f"{where}: cost", found["cost"], 1e-6, 1e6)
    experts = {}
    for layer, slots in _any_object(found["experts"], f"{where}: experts").items():
        name = f"{where}: experts: {_brief(layer)}"
        if not layer.isascii() or not layer.isdecimal() or len(layer) > 5:
            raise ConfigError(f"{name}: is not the number of a layer")
        for slot in _list({"": slots}, "", _MAX_MODULES, name):
            _check_index(name, slot, _MAX_MODULES)
        if len(set(slots)) != len(slots):
            raise ConfigError(f"{name}: a slot is there twice")
        experts[int(layer)] = tuple(slots)
    return PlannedWorker(_text(found["machine"], f"{where}: machine"), float(found["cost"]), experts)


def _options(value: Any) -> dict[str, str]:
    """By their names without dashes in front, as texts of a command line."""
    found = _object(value, "options", set(OPTIONS), {"workers"})
    for name, each in found.items():
        if not isinstance(each, str | int | float) or isinstance(each, bool):
            raise ConfigError(f"options: {name}: expected a text or a number, got {type(each).__name__}")
    return {
        name: _text(each, f"options: {name}") if isinstance(each, str) else f"{each:g}"
        for name, each in found.items()
    }


def _list_of_numbers(value: Any, where: str) -> list[float]:
    found = _list({"": value}, "", _MAX_MODULES, where)
    for each in found:
        check_number(where, each, 0, 1e18)
    return [float(each) for each in found]


def _check_index(name: str, value: Any, limit: int) -> None:
    if value != 0 or isinstance(value, bool) or not isinstance(value, int):
        check_count(name, value, limit)


def _object(value: Any, where: str, known: set[str], needed: set[str]) -> Mapping[str, Any]:
    found = _any_object(value, where)
    check_known(found, known, where)
    for name in sorted(needed - found.keys()):
        raise ConfigError(f"{where}: {name} is missing")
    return found


def _any_object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected an object, got {type(value).__name__}")
    return value


def _list(found: Mapping[str, Any], key: str, most: int, where: str | None = None) -> list[Any]:
    value = found[key]
    if not isinstance(value, list) or len(value) > most:
        raise ConfigError(f"{where or key}: expected a list of at most {most}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
        raise ConfigError(f"{where}: {brief(value)} is not a short text")
    return value


def _brief(value: object) -> str:
    return (
        brief(value)
        if not isinstance(value, tuple)
        else f"{len(value)} of {brief(value[0] if value else 0)} ..."
    )
