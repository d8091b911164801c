"""Predictions of a sweep's cells: each simulated with several seeds."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

from scaling.cell import Cell
from scaling.machines import Machines
from scaling.predict.settings import demand_of, setting_of
from scaling.prediction import Interval, Prediction
from scaling.simulation.outcome import Outcome
from scaling.simulation.setting import CostsOf, usual_costs
from scaling.simulation.world import World

NUM_SEEDS = 3


def predict_all(
    cells: Sequence[Cell],
    machines: Machines,
    base: Path,
    num_seeds: int = NUM_SEEDS,
    skew_seed: int = 0,
    costs_of: CostsOf = usual_costs,
) -> list[Prediction]:
    """One for each cell, in their order. Raises ConfigError."""
    return [predict(cell, machines, base, num_seeds, skew_seed, costs_of) for cell in cells]


def predict(
    cell: Cell,
    machines: Machines,
    base: Path,
    num_seeds: int = NUM_SEEDS,
    skew_seed: int = 0,
    costs_of: CostsOf = usual_costs,
) -> Prediction:
    """The medians over seeds, and between which values they were: that is how far chance moves a cell, and
    not how far the model of the machine is from it. Raises ConfigError."""
    outcomes = [
        outcome_of(cell, machines, base, seed, skew_seed, costs_of) for seed in range(1, num_seeds + 1)
    ]
    firsts = [each.first_token_ms.median if each.first_token_ms else 0.0 for each in outcomes]
    gaps = [each.gap_ms.median if each.gap_ms else 0.0 for each in outcomes]
    words = [each.binds for each in outcomes]
    return Prediction(
        cell.key,
        tokens_per_s=_interval([each.tokens_per_s for each in outcomes]),
        gap_ms=_interval(gaps),
        first_token_ms=_interval(firsts),
        binds=max(words, key=words.count),
        split_ms={name: fmean(each.split_ms[name] for each in outcomes) for name in outcomes[0].split_ms},
    )


def outcome_of(
    cell: Cell,
    machines: Machines,
    base: Path,
    seed: int = 0,
    skew_seed: int = 0,
    costs_of: CostsOf = usual_costs,
) -> Outcome:
    """One simulated run of a cell. Raises ConfigError."""
    setting = setting_of(cell, machines, base, seed, skew_seed, costs_of)
    return World(setting, demand_of(cell, setting.config, base, seed)).run()


def _interval(values: Sequence[float]) -> Interval:
    return Interval(median(values), min(values), max(values))
