"""`expertmesh simulate`: one setting under one load, or a grid of settings."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from coordinator.commands.simulate_arguments import SimulateArguments
from expertmesh.commands.options import options_of
from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import num_requests
from scaling.machines import Machine, Machines
from scaling.simulation.given import Given, fault_of, link_of, setting_of
from scaling.simulation.grid import Grid, Row, pays, rows, write_csv
from scaling.simulation.memory import fit
from scaling.simulation.planned import with_plan
from scaling.simulation.setting import Ask, Demand, Setting
from scaling.simulation.shown import as_json, grid_lines, load_lines, rows_json, steady_lines
from scaling.simulation.steady import steady
from scaling.simulation.workers import first_holders
from scaling.simulation.world import World
from scaling.strict import read

# More requests of one load are simulated for hours.
MOST_REQUESTS = 100_000


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    given = options_of(args, SimulateArguments)
    return _grid(given, given.grid) if given.grid is not None else _one(given)


def _grid(given: SimulateArguments, path: Path) -> int:
    grid = read(path, Grid)
    found = list(_counted(rows(grid, path.parent), grid.num_points))
    said = pays(found)
    if given.out is not None:
        write_csv(given.out, found)
    if given.json:
        print(json.dumps(rows_json(found, said)))
    else:
        print("\n".join([*([grid.note] if grid.note else []), *grid_lines(said)]))
    return 0


def _counted(found: Iterator[Row], num: int) -> Iterator[Row]:
    """Says how far it is, on a terminal."""
    for number, row in enumerate(found, 1):
        if sys.stderr.isatty():
            print(f"\r{number}/{num} {row.model}, {row.workers} workers   ", end="", file=sys.stderr)
        yield row
    if sys.stderr.isatty():
        print(file=sys.stderr)


def _one(given: SimulateArguments) -> int:
    setting = _setting(given)
    load, batch = given.load, given.load.concurrency or 8
    shape = setting.shape
    context = load.prompt_tokens + (0 if load.steady else load.output_tokens)
    holders = first_holders(setting, shape) if setting.workers else {}
    memory = fit(
        setting, shape, holders, -(-min(batch, setting.engine.max_num_seqs) // given.coordinators) * context
    )
    setting = replace(setting, holders=dict(holders) if setting.workers else None)
    if load.steady:
        streams = steady(setting, batch, load.prompt_tokens)
        lines, data = steady_lines(setting, memory, streams), as_json(memory=memory, steady=streams)
    else:
        outcome = World(setting, _demand(given)).run()
        lines, data = load_lines(setting, memory, outcome), as_json(memory=memory, outcome=outcome)
    print(json.dumps(data) if given.json else "\n".join(lines))
    return 0


def _setting(given: SimulateArguments) -> Setting:
    """Raises ConfigError."""
    said = given.machine
    assert given.model is not None, "there is a grid otherwise"
    machine = Machine(
        "typical",
        cores=said.cores,
        memory_gb=said.memory_gb,
        gbytes_per_s=said.gbytes_per_s,
        gflops=said.gflops,
        disk_mb_per_s=said.disk_mb_per_s,
    )
    made = Given(
        given.model,
        None if given.machines is None else read(given.machines, Machines),
        machine,
        link_of(said.link),
        given.coordinators,
        given.engine,
        given.workers,
        tuple(map(fault_of, given.fail)),
        given.trace,
        given.layers,
        given.restart_s,
        given.seed,
    )
    return setting_of(made) if given.plan is None else with_plan(made, given.plan)


def _demand(given: SimulateArguments) -> Demand:
    load = given.load
    said = Load(
        concurrency=None if load.rate is not None else load.concurrency or 8,
        rate=load.rate,
        num_requests=load.requests,
    )
    num = num_requests(said)
    if num > MOST_REQUESTS:
        raise ConfigError(f"--requests: {num} is more than {MOST_REQUESTS}")
    times: list[float | None] = [None] * num
    if load.rate is not None:
        gaps = np.random.default_rng((given.seed, 3)).exponential(1 / load.rate, num)
        times = list(np.cumsum(gaps) - gaps[0])
    asks = [Ask(at, load.prompt_tokens, load.output_tokens) for at in times]
    return Demand(asks, said.concurrency)
