"""What becomes of observations when the last round is over: predictions, tables, the report."""

from pathlib import Path

import msgspec
from msgspec import Struct

from moe_model.errors import ConfigError
from scaling.machines import Machines
from scaling.predict.cells import predict
from scaling.prediction import Prediction
from scaling.results.report import write_report
from scaling.results.tables import write_tables
from scaling.store import Results, write_whole
from scaling.strict import read
from scaling.sweep.calibration import MEASURED, measured_machines
from scaling.sweep.experiment import Plan

# In the folder of results, where the machine was measured.
MACHINES = "machines.json"


class Finished(Struct, frozen=True):
    """`problems`: of cells that could not be predicted, a sentence each."""

    report: Path
    problems: list[str]


def check_machines(plan: Plan) -> None:
    """Raises ConfigError where the experiment names a file that is none of machines."""
    named = plan.experiment.machines
    if named not in (None, MEASURED):
        _read(plan, named)


def _machines_of(plan: Plan, results: Results) -> Machines | None:
    """None where the experiment names none. Raises ConfigError."""
    named = plan.experiment.machines
    if named != MEASURED:
        return None if named is None else _read(plan, named)
    found = measured_machines(results.folder)
    write_whole(results.folder / MACHINES, msgspec.json.format(msgspec.json.encode(found), indent=1))
    return found


def _read(plan: Plan, name: str) -> Machines:
    return read(plan.base / name, Machines)


def finish(plan: Plan, results: Results) -> Finished:
    """Raises OSError. Cells are predicted again each time: nothing is fitted to what was
    measured."""
    machines, problems = None, list[str]()
    try:
        machines = _machines_of(plan, results)
    except ConfigError as error:
        # What was measured is worth its tables all the same.
        problems.append(f"no predictions: {error}")
    if machines is not None:
        found = list[Prediction]()
        for cell in plan.cells.values():
            try:
                found.append(predict(cell, machines, plan.base, skew_seed=plan.experiment.seed))
            except ConfigError as error:
                problems.append(f"no prediction: {cell.label} ({cell.key}): {error}")
        results.predicted(found)
    write_tables(results)
    return Finished(write_report(results), problems)
