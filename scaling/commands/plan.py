"""expertmesh plan: reads machines, a model and its routing, prints the plan and writes it for a server."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from coordinator.commands.plan_arguments import PlanArguments
from expertmesh.commands.options import options_of
from moe_model.errors import ConfigError
from scaling.machines import Machines
from scaling.planning.choose import Wish, plan
from scaling.planning.loads import chances, even_loads
from scaling.planning.report import report
from scaling.planning.setting import Setting
from scaling.planning.what_if import changes
from scaling.planning.write import report_data, write_plan
from scaling.probe.network import probe_cluster
from scaling.probe.passes import depth
from scaling.routing.loads import loads_of, zipf_loads
from scaling.shape import Shape, config_of, shape_of_config
from scaling.strict import read

_ZIPF = re.compile(r"zipf:(\d{1,2}(?:\.\d{1,9})?)(?::(\d{1,10}))?")


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError, CheckpointError, ClusterError."""
    options = options_of(args, PlanArguments)
    config = config_of(options.model, options.num_layers)
    shape = shape_of_config(config, options.model.resolve().stem)
    machines = machines_of(options.machines, insecure=options.insecure)
    setting = Setting(
        shape,
        config,
        machines,
        chances(loads_of_option(options.trace, shape), shape),
        options.coordinator or machines.machines[0].name,
        dtype=options.dtype,
        context=options.context,
    )
    wish = _wish(options)
    made = plan(setting, wish, _say)
    others = [] if options.no_what_if else changes(made, wish)
    if options.out is not None:
        write_plan(made, options.out)
    if options.json:
        print(json.dumps(report_data(made, others)))
        return 0
    for line in report(made, others):
        print(line)
    if options.out is not None:
        print(f"\nexpertmesh serve {options.model} --plan {options.out}")
    return 0


def loads_of_option(trace: str | None, shape: Shape) -> Sequence[Sequence[float]]:
    """L x E relative loads. Raises ConfigError."""
    if trace is None:
        return even_loads(shape)
    if found := _ZIPF.fullmatch(trace):
        return zipf_loads(shape, float(found[1]), int(found[2] or 0))
    if trace.startswith("zipf:"):
        raise ConfigError(f"--trace {trace}: expected zipf:S or zipf:S:SEED, as zipf:1.2:7")
    return loads_of(Path(trace))


def machines_of(text: str, *, insecure: bool = False) -> Machines:
    """Of a file, or of a running cluster, which is probed: each has its address for a name, so that a server
    finds it. Raises ConfigError, ClusterError."""
    path = Path(text)
    if path.exists() or not re.fullmatch(r"[^/]+:\d{1,5}", text):
        return read(path, Machines)
    say = partial(print, file=sys.stderr, flush=True)
    how = depth(quick=True, all_forms=False)
    return probe_cluster(text, how, say, addresses=True, insecure=insecure)


def _wish(options: PlanArguments) -> Wish:
    return Wish(
        objective=options.objective,
        max_gap_ms=options.max_gap_ms,
        survive=options.survive,
        concurrency=options.concurrency,
        form=None if options.expert_dtype == "auto" else options.expert_dtype,
        num_slices=options.expert_slices,
        coordinator=options.coordinator,
        coordinator_only=options.coordinator_only,
        seconds=options.seconds,
        seed=options.seed,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
