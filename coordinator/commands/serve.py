"""expertmesh serve: a coordinator with its expert workers, until SIGTERM."""

import argparse
import asyncio
from dataclasses import replace
from importlib import import_module

from coordinator.commands.plan_options import config_of
from coordinator.server.environment import api_key
from coordinator.server.launcher.launch import launch


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError when the server cannot begin."""
    config = replace(config_of(args), api_key=api_key())
    if config.processes.with_engine:
        return asyncio.run(launch(config, args.report))
    # What computes is large, and this process is the one that does it.
    import_module("coordinator.server.process").configure_process(config.engine)
    served: int = asyncio.run(import_module("coordinator.server.serving").serve(config, args.report))
    return served
