"""The composition root: the one place that knows every class and puts them together."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import torch

from coordinator.api.grpc_server import GrpcServer
from coordinator.api.served_model import ServedModel
from coordinator.config import EngineConfig, ServeConfig, WorkersConfig
from coordinator.engine.async_engine import AsyncEngine
from coordinator.engine.block_allocator import BlockAllocator
from coordinator.engine.engine import Engine
from coordinator.engine.kv_cache import KVCache, num_blocks_for
from coordinator.engine.model_runner import ModelRunner
from coordinator.engine.request import ContextOverflow, Request, StopRules
from coordinator.engine.scheduler import Scheduler
from expert_workers.in_process import InProcessTransport
from expert_workers.members import Expected
from expert_workers.placement import Placement, place
from expert_workers.pool import ExpertPool, PoolOptions
from expert_workers.ray_cluster import RayCluster
from expert_workers.ray_workers import RayWorkers
from expert_workers.transport import Transport
from expert_workers.wire import dtype_name
from expert_workers.worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint import Checkpoint
from moe_model.experts import ExpertBackend
from moe_model.families import family_of
from moe_model.loading import load_local_experts, load_model
from moe_model.sampling import SamplingParams
from moe_model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EXPERT_WAIT_TURN = 0.2


def configure_process(config: EngineConfig) -> None:
    """Settings that belong to the whole process; called once, by the command that owns it."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)


def configure_logging() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def num_kv_blocks(checkpoint: Checkpoint, config: EngineConfig) -> int:
    return num_blocks_for(
        checkpoint.config, config.block_size, config.dtype, config.max_num_seqs, config.kv_cache_bytes
    )


def build_engine(
    checkpoint: Checkpoint, config: EngineConfig, experts: ExpertBackend, expert_wait_timeout: float = 0.0
) -> Engine:
    """Loads the shared part and puts an engine around it. Raises CheckpointError, ConfigError.

    Steps whose experts are lost are tried again for `expert_wait_timeout` seconds.
    """
    num_blocks, device = num_kv_blocks(checkpoint, config), config.resolve_device()
    cache = KVCache(checkpoint.config, num_blocks, config.block_size, config.dtype, device)
    model = load_model(checkpoint, experts, config.dtype, device)
    scheduler = Scheduler(
        BlockAllocator(num_blocks), config.block_size, config.max_num_seqs, config.max_step_tokens
    )
    wait = _wait_for_experts(experts) if isinstance(experts, ExpertPool) else None
    runner = ModelRunner(model, cache)
    return Engine(scheduler, runner, checkpoint.config.max_seq_len, wait, expert_wait_timeout)


def _wait_for_experts(pool: ExpertPool) -> Callable[[], None]:
    """In short turns, so that the engine hears its callers between them."""

    def wait() -> None:
        pool.revive(time.monotonic() + EXPERT_WAIT_TURN)

    return wait


def served_model(
    checkpoint: Checkpoint,
    name: str,
    max_output_tokens: int,
    config: EngineConfig,
    overflow: ContextOverflow = ContextOverflow.STOP,
) -> ServedModel:
    """What the fronts know about the model. Raises CheckpointError, TokenizerError."""
    tokenizer_json = checkpoint.read_tokenizer()
    return ServedModel(
        name=name,
        config=checkpoint.config,
        generation=checkpoint.generation,
        tokenizer=None if tokenizer_json is None else _tokenizer(checkpoint, tokenizer_json),
        architecture=family_of(checkpoint.config).architecture,
        max_output_tokens=max_output_tokens,
        kv_capacity_tokens=num_kv_blocks(checkpoint, config) * config.block_size,
        default_overflow=overflow,
    )


def _tokenizer(checkpoint: Checkpoint, data: bytes) -> Tokenizer:
    eos = checkpoint.generation.eos_token_ids
    return Tokenizer.from_bytes(data, checkpoint.generation.bos_token_id, eos[0] if eos else None)


@contextmanager
def open_experts(
    checkpoint: Checkpoint, engine: EngineConfig, workers: WorkersConfig
) -> Iterator[ExpertBackend]:
    """The experts, in this process or in workers that end with the block."""
    if workers.num_workers == 0:
        yield load_local_experts(checkpoint, engine.dtype, engine.resolve_device())
        return
    config = checkpoint.config
    replicas = workers.num_replicas
    if replicas < workers.replicas:
        logger.warning("%d replicas asked for, %d workers can hold %d", workers.replicas, replicas, replicas)
    placement = place(config.n_layers, config.n_experts, workers.num_workers, replicas)
    specs = [
        _worker_spec(checkpoint, placement, rank, engine, workers) for rank in range(workers.num_workers)
    ]
    with _open_transport(specs, workers) as transport:
        options = PoolOptions(call_timeout=workers.call_timeout, start_timeout=workers.start_timeout)
        expected = Expected(dtype_name(engine.dtype), checkpoint.fingerprint)
        pool = ExpertPool.connect(placement, transport, options, expected)
        try:
            yield pool
        finally:
            pool.close()


def _worker_spec(
    checkpoint: Checkpoint, placement: Placement, rank: int, engine: EngineConfig, workers: WorkersConfig
) -> WorkerSpec:
    num_threads = workers.num_threads
    if num_threads is None and workers.ray_address is None:
        # All on this machine: together no more threads than it has cores.
        num_threads = max(1, len(os.sched_getaffinity(0)) // workers.num_workers)
    return WorkerSpec(
        rank,
        str(checkpoint.path.resolve()),
        placement.experts_of(rank),
        engine.dtype,
        num_threads=num_threads,
        fingerprint=checkpoint.fingerprint,
    )


@contextmanager
def _open_transport(specs: Sequence[WorkerSpec], config: WorkersConfig) -> Iterator[Transport]:
    """Started workers and the way to them; both end with the block."""
    if config.transport == "in-process":
        yield InProcessTransport({spec.rank: ExpertWorker.load(spec) for spec in specs})
        return
    address = config.ray_address
    tls = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    cluster = RayCluster.start_local() if address is None else RayCluster.connect(address, tls=tls)
    try:
        actors = RayWorkers.start(
            specs,
            namespace=config.ray_namespace,
            timeout=config.start_timeout,
            replace=config.replace_workers,
        )
        try:
            yield actors.transport()
        finally:
            actors.close()
    finally:
        cluster.close()


def describe_experts(experts: ExpertBackend) -> list[str]:
    """One line per worker: who it is, what it holds, what it has done."""
    if not isinstance(experts, ExpertPool):
        return ["all experts run in the coordinator's process"]
    return [
        f"worker {worker.rank}  {worker.state}  pid {worker.pid}  {worker.device}  "
        f"{worker.num_bytes / 1e6:.1f} MB  {worker.routed_rows} rows  "
        + "  ".join(f"layer {layer}: {','.join(map(str, ids))}" for layer, ids in worker.experts.items())
        for worker in experts.topology()
    ]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that can serve."""

    grpc: GrpcServer
    engine: AsyncEngine
    experts: ExpertBackend
    startup_seconds: float


@asynccontextmanager
async def open_server(config: ServeConfig) -> AsyncIterator[RunningServer]:
    """A whole server, ready; everything it started ends with the block. Raises ExpertMeshError.

    The port is taken first, so that a taken one shows before anything costly starts. Loading runs on other
    threads, so that health checks are answered and a signal is heard meanwhile.
    """
    started = time.monotonic()
    grpc_server = GrpcServer(config.grpc_address)
    grpc_server.bind()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(grpc_server.close)
        await grpc_server.start()
        checkpoint = await asyncio.to_thread(Checkpoint.open, config.checkpoint)
        name = config.model_name or checkpoint.path.resolve().name
        limits = (config.max_output_tokens, config.engine, config.context_overflow)
        model = await asyncio.to_thread(served_model, checkpoint, name, *limits)
        opened = open_experts(checkpoint, config.engine, config.workers)
        experts = await asyncio.to_thread(opened.__enter__)
        stack.push_async_callback(asyncio.to_thread, opened.__exit__, None, None, None)
        wait_timeout = config.workers.expert_wait_timeout
        core = await asyncio.to_thread(build_engine, checkpoint, config.engine, experts, wait_timeout)
        engine = AsyncEngine(core)
        stack.push_async_callback(engine.close)
        await _warm_up(engine)
        await grpc_server.set_ready(model, engine)
        yield RunningServer(grpc_server, engine, experts, time.monotonic() - started)


async def _warm_up(engine: AsyncEngine) -> None:
    """One token through everything, so that READY means it works. Raises the request's error."""
    rules = StopRules(max_tokens=1, context_overflow=ContextOverflow.SLIDE)
    async for _ in engine.stream(Request("warm-up", (0,), SamplingParams(temperature=0), rules)):
        pass
