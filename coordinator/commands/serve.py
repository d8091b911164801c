"""expertmesh serve: a coordinator with its expert workers, until SIGTERM."""

import argparse
import asyncio
from pathlib import Path

from coordinator.commands.engine_arguments import (
    add_engine_arguments,
    add_worker_arguments,
    engine_config,
    positive,
    positive_seconds,
    workers_config,
)
from coordinator.config import DEFAULT_MAX_OUTPUT_TOKENS, ServeConfig
from coordinator.engine.request import ContextOverflow
from coordinator.main import configure_logging, configure_process
from coordinator.serving import serve

HELP = "serve a checkpoint with Ray expert workers over gRPC"
DEFAULT_ADDRESS = "127.0.0.1:50051"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    parser.add_argument(
        "--grpc-address",
        default=DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help=f"where to listen; port 0 picks one ({DEFAULT_ADDRESS})",
    )
    parser.add_argument("--model-name", metavar="NAME", help="name clients know (default: the folder's)")
    parser.add_argument(
        "--max-output-tokens",
        type=positive,
        default=DEFAULT_MAX_OUTPUT_TOKENS,
        metavar="N",
        help=f"most tokens one request may generate ({DEFAULT_MAX_OUTPUT_TOKENS})",
    )
    parser.add_argument(
        "--context-overflow",
        type=ContextOverflow,
        choices=list(ContextOverflow),
        default=ContextOverflow.STOP,
        metavar="stop|slide",
        help="for requests that do not say: stop at the end of the context, or slide (stop)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=positive_seconds,
        default=30.0,
        metavar="S",
        help="seconds that running requests get after SIGTERM (30)",
    )
    add_worker_arguments(parser, default_workers=2)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError when the server cannot begin."""
    configure_logging()
    config = ServeConfig(
        checkpoint=args.checkpoint,
        engine=engine_config(args),
        workers=workers_config(args),
        grpc_address=args.grpc_address,
        model_name=args.model_name,
        max_output_tokens=args.max_output_tokens,
        context_overflow=args.context_overflow,
        drain_timeout=args.drain_timeout,
    )
    configure_process(config.engine)
    return asyncio.run(serve(config))
