"""expertmesh serve: a coordinator with its expert workers, until SIGTERM."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from coordinator.commands.engine_arguments import (
    add_engine_arguments,
    add_worker_arguments,
    engine_config,
    workers_config,
)
from coordinator.commands.observability_arguments import (
    add_observability_arguments,
    observability_config,
)
from coordinator.commands.security_arguments import add_security_arguments, security_config
from coordinator.commands.serve_arguments import (
    add_model_arguments,
    add_service_arguments,
    addresses,
    admission_config,
    model_options,
    readiness_config,
)
from coordinator.config import ServeConfig
from coordinator.main import api_key, configure_logging, configure_process
from coordinator.serving import serve

HELP = "serve a checkpoint with Ray expert workers over gRPC and HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    add_service_arguments(parser)
    add_model_arguments(parser)
    add_security_arguments(parser)
    add_observability_arguments(parser)
    add_worker_arguments(parser, default_workers=2)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError when the server cannot begin."""
    config = ServeConfig(
        checkpoint=args.checkpoint,
        engine=engine_config(args),
        workers=workers_config(args, insecure=args.insecure),
        model=model_options(args),
        addresses=addresses(args),
        security=security_config(args),
        api_key=api_key(),
        admission=admission_config(args),
        readiness=readiness_config(args),
        observability=observability_config(args),
        write_stall_timeout=args.write_stall_timeout,
        strict_fields=args.strict_fields,
        withdrawal_grace=args.withdrawal_grace,
        drain_timeout=args.drain_timeout,
    )
    configure_logging(config.observability)
    configure_process(config.engine)
    code = asyncio.run(serve(config))
    if code:
        # Threads of Ray may wait for ever for a head that is gone; they must not meet the interpreter's end.
        sys.stdout.flush()
        logging.shutdown()
        os._exit(code)
    return code
