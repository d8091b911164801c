"""The experiment that a command line gives: its file, changed by its options."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.commands.sweep_arguments import SweepArguments
from moe_model.errors import ConfigError
from scaling.cell import Cell
from scaling.loads.senders import missing_load
from scaling.strict import convert, load
from scaling.sweep.experiment import Experiment, Plan, planned
from scaling.sweep.topologies import missing_of
from scaling.sweep.vllm_params import BENCH, SERVE, is_parameters, parameters, read_parameters

Fields = dict[str, Any]


def given_plan(given: SweepArguments) -> Plan:
    """Raises ConfigError."""
    file = None if given.file is None else Path(given.file)
    experiment, changes = Experiment(name="vllm-parameters"), [Fields()]
    if file is not None:
        experiment, changes = _of_file(file, load(file))
    if given.serve_params is not None:
        changes = _product(changes, read_parameters(given.serve_params, SERVE))
    if given.bench_params is not None:
        changes = _product(changes, read_parameters(given.bench_params, BENCH))
    changes = _product(changes, [_options(given)])
    if given.load is not None:
        changes = _product(changes, [{"load.tool": given.load}])
    base = Path() if file is None or is_parameters(load(file)) else file.parent
    return planned(experiment, base, changes)


def _of_file(file: Path, found: Any) -> tuple[Experiment, list[Fields]]:
    if is_parameters(found):
        changes = parameters(found, {**SERVE, **BENCH}, str(file))
        return Experiment(name=file.stem), changes
    return convert(found, Experiment, str(file)), [{}]


def _options(given: SweepArguments) -> Fields:
    found: Fields = {}
    if given.model is not None:
        found["model"] = str(Path(given.model).resolve()) if Path(given.model).exists() else given.model
    if given.ray_address is not None:
        found["where"] = "cluster"
    return found


def _product(first: Sequence[Fields], second: Sequence[Fields]) -> list[Fields]:
    return [{**one, **other} for one in first for other in second]


def chosen(cells: Mapping[str, Cell], only: Sequence[str]) -> dict[str, Cell]:
    """Those that `--only` names, all where it names none. Raises ConfigError for what names none."""
    for text in only:
        if not any(_is_meant(cell, text) for cell in cells.values()):
            raise ConfigError(f"--only {text}: no cell has this key or text; --dry-run shows them")
    return {
        key: cell for key, cell in cells.items() if not only or any(_is_meant(cell, text) for text in only)
    }


def _is_meant(cell: Cell, text: str) -> bool:
    return cell.key == text or text.lower() in cell.label.lower()


def missing(cells: Iterable[Cell], base: Path, ray_address: str | None) -> None:
    """Raises ConfigError, one line, for what this machine lacks for cells whose files are relative to
    `base`."""
    by_reason: dict[str, int] = {}
    for cell in cells:
        for reason in (missing_of(cell, ray_address), missing_load(cell.load.below(base))):
            if reason:
                by_reason[reason] = by_reason.get(reason, 0) + 1
    if by_reason:
        parts = [f"{reason} ({num} cells)" for reason, num in by_reason.items()]
        raise ConfigError(f"cells that cannot run here: {'; '.join(parts)}")
