"""What becomes of observations when the last round is over: predictions, tables, the report."""

from pathlib import Path

from msgspec import Struct

from moe_model.errors import ConfigError
from scaling.machines import Machines
from scaling.predict.cells import predict
from scaling.prediction import Prediction
from scaling.results.report import write_report
from scaling.results.tables import write_tables
from scaling.store import Results
from scaling.strict import read
from scaling.sweep.experiment import Plan


class Finished(Struct, frozen=True):
    """`problems`: of cells that could not be predicted, a sentence each."""

    report: Path
    problems: list[str]


def machines_of(plan: Plan) -> Machines | None:
    """Of the file that the experiment names; None where it names none. Raises ConfigError."""
    named = plan.experiment.machines
    return None if named is None else read(plan.base / named, Machines)


def finish(plan: Plan, results: Results) -> Finished:
    """Raises ConfigError, OSError. Cells are predicted again each time: nothing is fitted to what was
    measured."""
    machines, problems = machines_of(plan), list[str]()
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
