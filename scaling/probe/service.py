"""What a whole server takes for each token beyond its engine's steps: front, messages and clients, who share
the engine's cores."""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from benchmarks.engine import Load
from benchmarks.load import LightRuns, message_of
from benchmarks.server_process import ServerProcess, serving
from moe_model.checkpoint.reader import Checkpoint
from scaling.probe.steps import Measured

_TIMEOUT_S = 120.0
# Few callers have more turns each, so that each number of them is measured for long enough.
_MANY_CALLERS = 8


class Service(Struct, frozen=True):
    """`concurrency` callers, one request after the other: seconds of a token, of all callers together, and
    those that its engine's steps would take alone."""

    concurrency: int
    token_s: float
    engine_token_s: float


def measure_service(
    checkpoint: Checkpoint, load: Load, alone: Sequence[Measured], num_turns: int
) -> list[Service]:
    """`alone`: steps of this model in this process, with `load`. Raises RuntimeError for a server that does
    not start, and TimeoutError."""
    batches = sorted({each.batch for each in alone if each.phase == "decode"})
    with tempfile.TemporaryDirectory(prefix="expertmesh-probe-") as folder:
        arguments = ["--workers=0", "--dtype=bfloat16", "--max-gap=off", "--kv-cache-mib=256"]
        with serving(checkpoint.path, arguments, Path(folder) / "serve.log") as server:
            return [
                Service(
                    batch,
                    asyncio.run(_token_seconds(server, batch, load, _turns(num_turns, batch))),
                    engine_token_seconds(alone, load, batch),
                )
                for batch in batches
            ]


def _turns(num_turns: int, concurrency: int) -> int:
    return max(num_turns, num_turns * _MANY_CALLERS // concurrency)


def engine_token_seconds(alone: Sequence[Measured], load: Load, batch: int) -> float:
    """Of a token, where so many requests begin together and each step has one token of each."""
    seconds = {each.phase: each.seconds for each in alone if each.batch == batch}
    return (seconds["prefill"] + (load.new_tokens - 1) * seconds["decode"]) / (batch * load.new_tokens)


async def _token_seconds(server: ServerProcess, concurrency: int, load: Load, num_turns: int) -> float:
    """Of all tokens of all callers; a first turn warms up. Raises RuntimeError for a request that failed."""
    clients = LightRuns(server.address, concurrency)
    await clients.connect()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await asyncio.gather(*(_caller(clients, number, 1, load, 5000) for number in range(concurrency)))
            started = time.perf_counter()
            turns = (_caller(clients, number, num_turns, load, 0) for number in range(concurrency))
            await asyncio.gather(*turns)
            return (time.perf_counter() - started) / (concurrency * num_turns * load.new_tokens)
    finally:
        await clients.close()


async def _caller(clients: LightRuns, number: int, num_turns: int, load: Load, first: int) -> None:
    for turn in range(num_turns):
        message = message_of(first + number + 64 * turn, load.new_tokens, load.prompt_tokens)
        trace = await clients.run(message)
        if trace.code != "OK":
            raise RuntimeError(f"a request of the service's measurement ended {trace.code}")
