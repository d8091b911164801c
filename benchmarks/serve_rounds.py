"""One round of benchmarks.serve: the engine alone, then a server with the same work from outside.

The engine alone computes whole batches one after the other in this process. The server is a process of its
own; its clients are in this one and look at no message before the load has ended.
"""

import asyncio
import gc
import itertools
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.latency import Timing, timing
from benchmarks.light_clients import LightClients, Trace
from benchmarks.load import (
    closed_loop,
    open_loop,
    poisson_arrivals,
    prompt_of,
    request,
)
from benchmarks.server_process import ServerProcess, serving
from coordinator.config.engine import EngineConfig
from coordinator.config.service import AdmissionConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.request import Request, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from moe_model.checkpoint.reader import Checkpoint
from moe_model.sampling.params import SamplingParams

# Arrivals come from so many connections in turns.
OPEN_LOOP_CONNECTIONS = 32
WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent. `turns`: requests of each closed-loop client; `seconds`: how long arrivals come."""

    prompt_tokens: int
    new_tokens: int
    turns: int
    seconds: float
    vocab_size: int

    def prompts(self) -> Iterator[list[int]]:
        """Each another, so that no round finds the prefixes of one before it."""
        return (prompt_of(index, self.prompt_tokens, self.vocab_size) for index in itertools.count())


@dataclass(frozen=True, slots=True)
class Load:
    """Closed loop with so many clients; where there are none, open loop with so many requests a second."""

    clients: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.clients} clients" if self.clients else f"{self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class Alone:
    """Tokens per second of a batch without a server: in all its steps, in those after the prompts."""

    tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Served:
    """One load in one round. Cores are processor seconds per second."""

    tokens_per_second: float
    timings: Sequence[Timing]
    num_refused: int
    server_cores: float
    client_cores: float


@dataclass(frozen=True, slots=True)
class Round:
    """By batch, and by load."""

    alone: dict[int, Alone]
    served: dict[Load, Served]


def measure_alone(engine: Engine, plan: Plan, batch: int, prompts: Iterator[list[int]]) -> Alone:
    """The first batch warms up and is not counted."""
    _run_batch(engine, batch, WARM_UP_TOKENS, prompts)
    runs = [_run_batch(engine, batch, plan.new_tokens, prompts) for _ in range(plan.turns)]
    whole, decode, num_decoded = map(sum, zip(*runs, strict=True))
    return Alone(plan.turns * batch * plan.new_tokens / whole, num_decoded / decode if decode else 0.0)


def _run_batch(
    engine: Engine, batch: int, new_tokens: int, prompts: Iterator[list[int]]
) -> tuple[float, float, int]:
    """Seconds of the whole, seconds since the last sequence had begun, tokens since then.

    Raises RuntimeError where the context ends a sequence early.
    """
    rules = StopRules(new_tokens, ignore_eos=True)
    for index in range(batch):
        engine.submit(Request(f"alone-{index}", tuple(next(prompts)), SamplingParams(temperature=0), rules))
    started = begun_at = time.perf_counter()
    begun: set[str] = set()
    num_tokens = num_later = 0
    while engine.has_work:
        all_begun = len(begun) == batch
        for output in engine.step():
            if output.error is not None:
                raise output.error
            begun.add(output.request_id)
            num_tokens += len(output.token_ids)
            num_later += all_begun * len(output.token_ids)
        if not all_begun:
            begun_at = time.perf_counter()
    ended = time.perf_counter()
    if num_tokens != batch * new_tokens:
        raise RuntimeError(f"the engine made {num_tokens} of {batch * new_tokens} tokens")
    return ended - started, ended - begun_at, num_later


async def measure_served(
    server: ServerProcess, plan: Plan, loads: Sequence[Load], seed: int
) -> dict[Load, Served]:
    """One load after the other, on connections of its own."""
    prompts = plan.prompts()
    found = {}
    for load in loads:
        clients = LightClients(server.address, load.clients or OPEN_LOOP_CONNECTIONS)
        await clients.connect()
        try:
            found[load] = await _under(load, clients, server, plan, prompts, seed)
        finally:
            await clients.close()
    return found


async def _under(
    load: Load,
    clients: LightClients,
    server: ServerProcess,
    plan: Plan,
    prompts: Iterator[list[int]],
    seed: int,
) -> Served:
    warm_up = (request(prompt, WARM_UP_TOKENS).SerializeToString() for prompt in prompts)
    messages = (request(prompt, plan.new_tokens).SerializeToString() for prompt in prompts)
    await closed_loop(clients, load.clients or OPEN_LOOP_CONNECTIONS, 1, warm_up)
    if load.clients:
        return await _observed(server, plan, closed_loop(clients, load.clients, plan.turns, messages))
    arrivals = poisson_arrivals(load.rate, plan.seconds, seed)
    return await _observed(server, plan, open_loop(clients, arrivals, messages))


async def _observed(server: ServerProcess, plan: Plan, sending: Awaitable[Sequence[Trace]]) -> Served:
    server_before, client_before = server.cpu_seconds(), time.process_time()
    started = time.perf_counter()
    traces = await sending
    seconds = time.perf_counter() - started
    server_used, client_used = server.cpu_seconds() - server_before, time.process_time() - client_before
    # Only now are the messages looked at.
    admitted = [trace for trace in traces if trace.code != "RESOURCE_EXHAUSTED"]
    timings = [timing(trace, plan.new_tokens) for trace in admitted]
    return Served(
        tokens_per_second=sum(each.num_tokens for each in timings) / seconds,
        timings=timings,
        num_refused=len(traces) - len(admitted),
        server_cores=server_used / seconds,
        client_cores=client_used / seconds,
    )


def run_round(
    checkpoint: Checkpoint,
    config: EngineConfig,
    workers: WorkersConfig,
    plan: Plan,
    loads: Sequence[Load],
    seed: int,
) -> Round:
    """First the engine alone, then the server: never both at once."""
    batches = [load.clients for load in loads if load.clients]
    with open_experts(checkpoint, config, workers) as experts:
        engine, prompts = build_engine(checkpoint, config, experts), plan.prompts()
        alone = {batch: measure_alone(engine, plan, batch, prompts) for batch in batches}
    del engine, experts
    # What is left, torch above all, is not to be searched for garbage between two messages.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder:
        arguments = _serve_arguments(config, workers)
        with serving(checkpoint.path, arguments, Path(folder) / "log") as server:
            served = asyncio.run(measure_served(server, plan, loads, seed))
    gc.unfreeze()
    return Round(alone, served)


def _serve_arguments(config: EngineConfig, workers: WorkersConfig) -> list[str]:
    threads = [] if config.num_threads is None else [f"--threads={config.num_threads}"]
    return [
        f"--workers={workers.num_workers}",
        f"--dtype={config.dtype}",
        f"--max-batch={config.max_num_seqs}",
        f"--max-queue-requests={max(AdmissionConfig().max_requests, config.max_num_seqs)}",
        *threads,
    ]
