"""A folder of results: what was run, on what, and each observation the moment that it is there.

`manifest.json` says what the folder is; `observations.jsonl` grows by a line with each run of a cell, so that
a run that was killed goes on where it was; `predictions.json` has what was predicted."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from moe_model.errors import ConfigError
from scaling.cell import Cell
from scaling.observation import Observation
from scaling.prediction import Prediction
from scaling.strict import convert, load

MANIFEST, OBSERVATIONS, PREDICTIONS = "manifest.json", "observations.jsonl", "predictions.json"
VERSION = 1


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """`machine`: as benchmarks.manifest says, without names. `cells` by their keys. `bounds`: by how much a
    prediction may miss, as shares of what was measured, by what is predicted."""

    version: int
    name: str
    experiment: dict[str, Any]
    machine: dict[str, Any]
    seed: int
    num_rounds: int
    cells: dict[str, Cell]
    bounds: dict[str, float] = {}


class Results:
    """One folder. A run writes it, everything else reads it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.observations: list[Observation] = []
        self.predictions: dict[str, Prediction] = {}

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> "Results":
        """Raises ConfigError where results of another experiment are there."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            raise ConfigError(f"{folder}: has results already: --resume goes on, --out says another folder")
        write_whole(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: Path) -> "Results":
        """Raises ConfigError. The last line may be broken, where a run was killed as it wrote it."""
        path = folder / MANIFEST
        if not path.is_file():
            raise ConfigError(f"{folder}: no results of `expertmesh sweep`: {MANIFEST} is missing")
        results = cls(folder, convert(load(path), Manifest, str(path)))
        if results.manifest.version != VERSION:
            raise ConfigError(f"{path}: version {results.manifest.version}, this is for {VERSION}")
        results.observations = list(_lines(folder / OBSERVATIONS))
        if (folder / PREDICTIONS).exists():
            found = convert(load(folder / PREDICTIONS), list[Prediction], str(folder / PREDICTIONS))
            results.predictions = {prediction.cell: prediction for prediction in found}
        return results

    def add(self, observation: Observation) -> None:
        """It is on the disk when this returns."""
        with (self.folder / OBSERVATIONS).open("ab") as file:
            _end_broken_line(self.folder / OBSERVATIONS, file)
            file.write(msgspec.json.encode(observation) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.observations.append(observation)

    def predicted(self, predictions: Iterable[Prediction]) -> None:
        """Replaces what was predicted before."""
        self.predictions = {prediction.cell: prediction for prediction in predictions}
        data = msgspec.json.encode(list(self.predictions.values()))
        write_whole(self.folder / PREDICTIONS, msgspec.json.format(data, indent=1))

    def of(self) -> Mapping[str, list[Observation]]:
        """Those that ran, by cell, in the order of the manifest; a cell that never ran has none."""
        found: dict[str, list[Observation]] = {key: [] for key in self.manifest.cells}
        for observation in self.observations:
            if observation.failed is None and observation.cell in found:
                found[observation.cell].append(observation)
        return found


def write_whole(path: Path, data: bytes) -> None:
    """The old file or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _lines(path: Path) -> Iterable[Observation]:
    """Of whole lines: what has no end was being written when the run was killed."""
    if not path.exists():
        return
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON") from error
        yield convert(found, Observation, f"{path}, line {number}")


def _end_broken_line(path: Path, file: IO[bytes]) -> None:
    """Cuts off a line that a killed run has not ended: its cell runs again."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        file.truncate(data.rfind(b"\n") + 1)
