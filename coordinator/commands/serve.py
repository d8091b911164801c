"""expertmesh serve: a coordinator with its expert workers, until SIGTERM."""

import argparse
import asyncio
from dataclasses import replace

from coordinator.config.serve import ServeConfig
from coordinator.server.process import api_key, configure_process
from coordinator.server.serving import serve
from expertmesh.commands.options import options_of


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError when the server cannot begin."""
    config = replace(options_of(args, ServeConfig), api_key=api_key())
    configure_process(config.engine)
    return asyncio.run(serve(config, args.report))
