"""`expertmesh probe`: a machine, or each of a cluster, into a file for plans and simulations."""

import argparse
import os
import platform
import time
from datetime import UTC, datetime

import msgspec

from benchmarks.manifest import ROOT, commit
from coordinator.commands.probe_arguments import ProbeArguments
from coordinator.config.engine import EngineConfig
from coordinator.server.process import configure_process
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits
from moe_model.errors import ConfigError
from moe_model.machine import usable_cores
from scaling.machines import Machines
from scaling.probe.check import check_lines
from scaling.probe.local import measure_machine
from scaling.probe.network import probe_cluster
from scaling.probe.passes import depth
from scaling.probe.report import bound_lines, lines
from scaling.shape import shape_of
from scaling.store import write_whole
from scaling.strict import read

# Of this machine's cores, more are too many at work before anything is measured.
_BUSY = 0.15


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError, ClusterError."""
    given = options_of(args, ProbeArguments)
    shapes = [shape_of(model) for model in given.model]
    _say_if_busy()
    with sigterm_exits():
        if given.check:
            configure_process(EngineConfig())
            for line in check_lines(read(given.out, Machines).machines[0], _say):
                print(line, flush=True)
            return 0
        machines = _measured(given)
    write_whole(given.out, msgspec.json.format(msgspec.json.encode(machines), indent=1))
    for line in lines(machines):
        print(line)
    for shape in shapes:
        for machine in machines.machines:
            print(*bound_lines(machine, shape), sep="\n")
    print(f"wrote {given.out}")
    return 0


def _measured(given: ProbeArguments) -> Machines:
    how = depth(quick=given.quick, all_forms=given.all_forms, num_passes=given.passes)
    if given.ray_address is not None:
        found = probe_cluster(given.ray_address, how, _say, names=given.names, insecure=given.insecure)
    else:
        configure_process(EngineConfig())
        name = platform.node() if given.names else "m0"
        try:
            found = Machines((measure_machine(name, how, _say),))
        except RuntimeError as error:
            # A server or workers that did not start; torch says what it lacks in the same way.
            raise ConfigError(f"this machine could not be measured: {error}") from error
    return msgspec.structs.replace(
        found, commit=str(commit(ROOT)["commit"]), date=datetime.now(UTC).isoformat(timespec="seconds")
    )


def _say_if_busy() -> None:
    load, cores = os.getloadavg()[0], usable_cores().number
    if load > _BUSY * cores:
        print(
            f"other processes use {load:.1f} of {cores} cores (load average): numbers will be too slow",
            flush=True,
        )


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)
