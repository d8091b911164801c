"""expertmesh serve: a coordinator with its expert workers, until SIGTERM."""

import argparse
import asyncio

from coordinator.api.security.origins import origins_of
from coordinator.commands.engine_arguments import workers_config
from coordinator.commands.engine_config import engine_config
from coordinator.commands.observability_arguments import observability_config
from coordinator.commands.security_arguments import security_config
from coordinator.commands.serve_arguments import (
    addresses,
    admission_config,
    model_options,
    readiness_config,
)
from coordinator.server.config import ServeConfig
from coordinator.server.main import api_key, configure_process
from coordinator.server.serving import serve


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
        keep_alive_timeout=args.keep_alive_timeout,
        strict_fields=args.strict_fields,
        allowed_origins=origins_of(args.allowed_origins),
        withdrawal_grace=args.withdrawal_grace,
        drain_timeout=args.drain_timeout,
    )
    configure_process(config.engine)
    return asyncio.run(serve(config, args.report))
