"""expertmesh demo: a local Ray cluster, expert workers, a coordinator, one prompt through the gRPC client."""

import argparse
import asyncio
import time

from coordinator.commands.demo_arguments import DemoArguments
from coordinator.commands.termination import stop_exits
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.server.experts import describe_workers
from coordinator.server.main import open_server
from coordinator.server.phases import Phases
from coordinator.server.process import configure_process
from expertmesh import AsyncClient, Delta
from expertmesh.commands.options import options_of
from expertmesh.requests import generate_request
from moe_model.halt import Halt


def run(args: argparse.Namespace) -> int:
    """Raises ExpertMeshError."""
    given = options_of(args, DemoArguments)
    config = ServeConfig(
        checkpoint=given.checkpoint,
        engine=given.engine,
        workers=given.workers,
        addresses=Addresses("127.0.0.1:0", control=None, http=None),
    )
    configure_process(config.engine)
    # Refused here, before anything starts, if it is no text.
    generate_request(given.prompt, {"max_tokens": given.max_tokens, "seed": given.seed})
    with stop_exits() as halt:
        asyncio.run(_demo(config, given, args.report, halt))
    return 0


async def _demo(config: ServeConfig, given: DemoArguments, phases: Phases, halt: Halt) -> None:
    started = time.monotonic()
    print(f"starting Ray, {config.workers.num_workers} expert workers and the coordinator ...", flush=True)
    async with open_server(config, phases, halt) as server:
        phases.done()
        print(f"ready at {server.fronts.grpc.address} after {time.monotonic() - started:.1f} s\n", flush=True)
        async with AsyncClient(server.fronts.grpc.address) as client:
            await halt.unless_set(_stream(client, given))
        print("\n".join(describe_workers(server.engine.workers().workers)))
        print("stopping ...", flush=True)
    print(f"stopped; {time.monotonic() - started:.1f} s in all, libraries not counted")


async def _stream(client: AsyncClient, given: DemoArguments) -> None:
    """Rates as the client sees them: the first token apart, the others over the time after it."""
    sent = time.monotonic()
    first_token = sent
    num_tokens = 0
    print(given.prompt, end="", flush=True)
    async for event in client.stream(given.prompt, max_tokens=given.max_tokens, seed=given.seed):
        if isinstance(event, Delta):
            first_token = first_token if num_tokens else time.monotonic()
            num_tokens += event.num_tokens
            print(event.text, end="", flush=True)
    decode_seconds = time.monotonic() - first_token
    rate = (num_tokens - 1) / decode_seconds if num_tokens > 1 else 0.0
    print(f"\n\n{num_tokens} tokens, {rate:.0f} tokens/s, first token after {first_token - sent:.3f} s")
