"""An experiment's file, and the cells that it stands for."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from moe_model.errors import ConfigError
from scaling.cell import Cell, check
from scaling.loads.senders import wrong_load
from scaling.ranges import Above, Count, Name, Seed
from scaling.results.checks import BOUNDS
from scaling.strict import convert, load
from scaling.sweep.fields import merged, nested, says

Fields = dict[str, Any]
MAX_CELLS = 10_000
_NUM_NAMED = 3
# Options of `serve` that are not for `serve:` to say.
_OPTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_OF_CELLS = frozenset(("dtype", "workers", "replicas", "transport", "wire-dtype", "combine", "plan"))
_OF_SWEEPS = frozenset(
    (
        *("force-routing", "grpc-address", "http-address", "control-address", "metrics-address"),
        *("health-address", "ray-address", "ray-namespace", "cluster", "withdrawal-grace"),
        *("api-key-file", "tls-cert", "tls-key", "tls-client-ca"),
    )
)


class Experiment(Struct, frozen=True, forbid_unknown_fields=True):
    """`base`: fields of every cell. `sweep`: a list for each field that varies; the product of all is run.
    `cells`: cells of their own, each what differs from `base`. `skip`: what is left out of the product.
    `warmup`: requests before each measurement. `machines`: a file of `expertmesh probe`, by which cells are
    predicted, or `measured`: this machine, by passes of the probe before each round and after the last.
    `bounds`: by how much predictions may miss, as shares of what was measured, by the names of
    `scaling.results.checks`. `cell_seconds`: the longest that one run's load may take."""

    name: Name
    base: Fields = {}
    sweep: dict[str, Annotated[list[Any], Meta(min_length=1)]] = {}
    cells: list[Fields] = []
    skip: list[Fields] = []
    seed: Seed = 0
    rounds: Annotated[int, Meta(ge=1, le=1000)] = 3
    warmup: Count = 8
    bounds: dict[str, Above] = {}
    machines: Name | None = None
    cell_seconds: Above = 600.0


class Plan(Struct, frozen=True):
    """An experiment that can begin. `base`: the folder in which paths of the file are looked for."""

    experiment: Experiment
    cells: dict[str, Cell]
    base: Path


def planned(experiment: Experiment, base: Path, changes: Sequence[Fields] = ({},)) -> Plan:
    """`changes`: what else is changed of every cell, a cell for each. Raises ConfigError, one line for all
    cells that cannot be."""
    for name in experiment.bounds:
        if name not in BOUNDS:
            raise ConfigError(f"bounds: {name!r} is not known; there are {', '.join(BOUNDS)}")
    if experiment.bounds and experiment.machines is None:
        raise ConfigError("bounds: need `machines`, a file of `expertmesh probe` or `measured`")
    found = list(_cells(experiment, changes))
    cells = {cell.key: cell for cell in found}
    if not cells:
        raise ConfigError("skip: nothing is left of the product")
    _refuse(cells.values())
    return Plan(experiment, cells, base)


def read_experiment(path: Path) -> Experiment:
    """Raises ConfigError."""
    return convert(load(path), Experiment, str(path))


def _cells(experiment: Experiment, changes: Sequence[Fields]) -> Iterable[Cell]:
    base = nested(experiment.base, "base")
    fields = list(experiment.sweep)
    num = math.prod(map(len, experiment.sweep.values())) * len(changes)
    if num + len(experiment.cells) * len(changes) > MAX_CELLS:
        raise ConfigError(f"sweep: {num} cells; more than {MAX_CELLS} are not run")
    skips = [nested(skip, f"skip {number}") for number, skip in enumerate(experiment.skip, 1)]
    has_skipped = [False] * len(skips)
    changed = [nested(change, "parameters") for change in changes]
    products: Iterable[tuple[Any, ...]] = itertools.product(*experiment.sweep.values())
    if experiment.cells and not fields:
        products = ()
    for values, change in itertools.product(products, changed):
        given = nested(dict(zip(fields, values, strict=True)), "sweep")
        cell = _cell(merged(merged(base, given), change), f"sweep {_short(given)}")
        whole = msgspec.to_builtins(cell)
        matches = [says(whole, skip) for skip in skips]
        has_skipped = [before or now for before, now in zip(has_skipped, matches, strict=True)]
        if not any(matches):
            yield cell
    if False in has_skipped:
        raise ConfigError(f"skip {has_skipped.index(False) + 1}: no cell of the product is like this")
    for number, given in enumerate(experiment.cells, 1):
        for change in changed:
            name = f"cells {number}"
            yield _cell(merged(merged(base, nested(given, name)), change), name)


def _cell(fields: Mapping[str, Any], name: str) -> Cell:
    return convert(fields, Cell, name)


def _short(given: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in given.items())
    return f"({text[:150]})" if text else "(base alone)"


def _refuse(cells: Iterable[Cell]) -> None:
    by_reason: dict[str, list[str]] = {}
    for cell in cells:
        for reason in [*check(cell), *wrong_load(cell.load), *_options(cell)]:
            by_reason.setdefault(reason, []).append(cell.label)
    if by_reason:
        parts = [f"{reason} ({_named(labels)})" for reason, labels in by_reason.items()]
        raise ConfigError(f"cells that cannot be; change them or `skip` them: {'; '.join(parts)}")


def _options(cell: Cell) -> list[str]:
    """What `serve` may not say: a cell's own fields, and addresses."""
    return [
        f"serve: {name}: {'a field of the cell says it' if name in _OF_CELLS else 'the sweep says it'}"
        if name in _OF_CELLS or name in _OF_SWEEPS
        else f"serve: {name!r} is no name of an option"
        for name in cell.serve
        if name in _OF_CELLS or name in _OF_SWEEPS or not _OPTION.fullmatch(name)
    ]


def _named(labels: Sequence[str]) -> str:
    more = len(labels) - _NUM_NAMED
    return " | ".join(labels[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
