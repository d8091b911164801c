"""The folder of a sweep's results: begun, or gone on with."""

from pathlib import Path
from typing import Any

import msgspec

from benchmarks.manifest import manifest as of_machine
from moe_model.errors import ConfigError
from scaling.store import MANIFEST, VERSION, Manifest, Results, write_whole
from scaling.sweep.experiment import Plan


def begun(folder: Path, plan: Plan, num_rounds: int, *, is_resumed: bool) -> Results:
    """Raises ConfigError where results are there and `is_resumed` is not said, or are of other cells. With
    `is_resumed` and nothing there, it begins."""
    wanted = Manifest(
        version=VERSION,
        name=plan.experiment.name,
        experiment=msgspec.to_builtins(plan.experiment),
        machine=_machine(),
        seed=plan.experiment.seed,
        num_rounds=num_rounds,
        cells=plan.cells,
        bounds=plan.experiment.bounds,
    )
    if not (is_resumed and (folder / MANIFEST).exists()):
        return Results.create(folder, wanted)
    results = Results.open(folder)
    _check(folder, results.manifest, wanted)
    machine = results.manifest.machine
    resumed = [
        *machine.get("resumed", []),
        {name: wanted.machine[name] for name in ("commit", "dirty", "date")},
    ]
    results.manifest = msgspec.structs.replace(
        wanted,
        machine={**machine, "resumed": resumed},
        num_rounds=max(num_rounds, results.manifest.num_rounds),
    )
    data = msgspec.json.format(msgspec.json.encode(results.manifest), indent=1)
    write_whole(folder / MANIFEST, data)
    return results


def _machine() -> dict[str, Any]:
    found = of_machine("expertmesh sweep", ())
    return {name: value for name, value in found.items() if name != "command"}


def _check(folder: Path, found: Manifest, wanted: Manifest) -> None:
    other = found.cells.keys() ^ wanted.cells.keys()
    if other:
        raise ConfigError(
            f"{folder}: results of other cells ({len(other)} differ): --out says another folder"
        )
    if found.seed != wanted.seed:
        raise ConfigError(f"{folder}: results of seed {found.seed}, the experiment's is {wanted.seed}")
    if found.machine.get("cpu") != wanted.machine.get("cpu"):
        raise ConfigError(f"{folder}: results of another machine: --out says another folder")
