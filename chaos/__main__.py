"""What `expertmesh chaos` runs; its arguments are in coordinator/commands/chaos.py."""

import argparse
import sys

from chaos.judge import judge
from chaos.report import as_json, table
from chaos.run import Target, run_scenario
from chaos.scenario import changed, find
from coordinator.commands.chaos import ChaosArguments
from expertmesh.cli import main
from expertmesh.commands.connection import connection
from expertmesh.commands.options import options_of
from expertmesh.commands.signals import sigterm_exits


def run(args: argparse.Namespace) -> int:
    """0 if all expectations hold, else 1. Raises ExpertMeshError."""
    given = options_of(args, ChaosArguments)
    scenario = changed(
        find(given.scenario),
        duration=given.duration,
        seed=given.seed,
        streams=given.streams,
        expert_file=given.expert_file,
    )
    target = Target(given.address, given.control or next_port(given.address), connection(given.connection))
    with sigterm_exits():
        record = run_scenario(scenario, target, say)
    verdict = judge(record)
    print(table(record, verdict))
    print(as_json(record, verdict), flush=True)
    return 1 if verdict.failures else 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def next_port(address: str) -> str:
    """Where a server that was told nothing else has its ControlService."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}"


if __name__ == "__main__":
    raise SystemExit(main(["chaos", *sys.argv[1:]]))
