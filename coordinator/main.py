"""The composition root: the one place that knows every class and puts them together."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from coordinator.api import logging_setup
from coordinator.api.chat_template import ChatTemplate
from coordinator.api.operations import WorkerState, WorkerView
from coordinator.api.served_model import ServedModel
from coordinator.config import EngineConfig, ModelOptions, ObservabilityConfig, WorkersConfig
from coordinator.engine.block_allocator import BlockAllocator
from coordinator.engine.engine import Engine, ExpertWatch
from coordinator.engine.kernel_attention import attention_plan
from coordinator.engine.kv_cache import KVCache, num_blocks_for
from coordinator.engine.model_runner import ModelRunner
from coordinator.engine.observer import EngineObserver
from coordinator.engine.overlap import Overlap
from coordinator.engine.scheduler import Scheduler
from coordinator.structured.compiler import ConstraintCompiler
from expert_workers.assembly import Combine
from expert_workers.dispatch import PoolOptions
from expert_workers.in_process import InProcessTransport
from expert_workers.members import Expected
from expert_workers.placement import Placement, place
from expert_workers.pool import ExpertPool
from expert_workers.pool_stats import PoolObserver, PoolObservers
from expert_workers.ray_cluster import RayCluster
from expert_workers.ray_workers import DataPlane, RayWorkers
from expert_workers.stream_tls import TlsPaths
from expert_workers.transport import Transport
from expert_workers.wire import dtype_name
from expert_workers.worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint import MAX_CHAT_TEMPLATE_BYTES, Checkpoint
from moe_model.errors import ConfigError
from moe_model.experts import ExpertBackend
from moe_model.families import family_of
from moe_model.files import read_file
from moe_model.kernels.choice import choose_kernels, set_torch_threads
from moe_model.loading import load_local_experts, load_model
from moe_model.private_files import check_private
from moe_model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EXPERT_WAIT_TURN = 0.2
SWITCH_INTERVAL = 0.0005
API_KEY_VARIABLE = "EXPERTMESH_API_KEY"


def configure_process(config: EngineConfig) -> None:
    """Settings that belong to the whole process; called once, by the command that owns it."""
    # The engine lets go of the interpreter at every operation of torch and waits so long to get it back from
    # a busy event loop: with Python's 5 ms an overloaded server loses half of its rate.
    sys.setswitchinterval(SWITCH_INTERVAL)
    set_torch_threads(config.kernels, config.resolve_device(), config.num_threads)


def api_key() -> str | None:
    """The key that the environment may hold."""
    return os.environ.get(API_KEY_VARIABLE) or None


def configure_logging(config: ObservabilityConfig) -> None:
    """For the process; called once, by the command that owns it."""
    logging_setup.configure(sys.stderr, config.log_format, config.log_level)


def num_kv_blocks(checkpoint: Checkpoint, config: EngineConfig) -> int:
    return num_blocks_for(
        checkpoint.config, config.block_size, config.dtype, config.max_num_seqs, config.kv_cache_bytes
    )


def build_engine(
    checkpoint: Checkpoint,
    config: EngineConfig,
    experts: ExpertBackend,
    expert_wait_timeout: float = 0.0,
    observer: EngineObserver | None = None,
) -> Engine:
    """Loads the shared part and puts an engine around it. Raises CheckpointError, ConfigError.

    Steps whose experts are lost are tried again for `expert_wait_timeout` seconds.
    """
    num_blocks, device = num_kv_blocks(checkpoint, config), config.resolve_device()
    kernels = choose_kernels(config.kernels, device, config.num_threads)
    cache = KVCache(checkpoint.config, num_blocks, config.block_size, config.dtype, device)
    model = load_model(checkpoint, experts, config.dtype, device, kernels)
    scheduler = Scheduler(
        BlockAllocator(num_blocks),
        config.block_size,
        config.max_num_seqs,
        config.max_step_tokens,
        prefix_caching=config.prefix_caching,
    )
    watch = _watch(experts, expert_wait_timeout) if isinstance(experts, ExpertPool) else None
    overlap = Overlap(config.micro_batches) if isinstance(experts, ExpertPool) else None
    runner = ModelRunner(model, cache, attention_plan(kernels), overlap)
    return Engine(scheduler, runner, checkpoint.config.max_seq_len, watch, observer)


def _watch(pool: ExpertPool, timeout: float) -> ExpertWatch:
    """Waits in short turns, so that the engine hears its callers between them."""

    def wait() -> None:
        pool.revive(time.monotonic() + EXPERT_WAIT_TURN)

    return ExpertWatch(wait, timeout, pool.watch)


def served_model(checkpoint: Checkpoint, options: ModelOptions, config: EngineConfig) -> ServedModel:
    """What the fronts know about the model. Raises CheckpointError, TokenizerError, ConfigError."""
    tokenizer_json = checkpoint.read_tokenizer()
    tokenizer = None if tokenizer_json is None else _tokenizer(checkpoint, tokenizer_json)
    return ServedModel(
        name=options.name or checkpoint.path.resolve().name,
        config=checkpoint.config,
        generation=checkpoint.generation,
        tokenizer=tokenizer,
        architecture=family_of(checkpoint.config).architecture,
        max_output_tokens=options.max_output_tokens,
        kv_capacity_tokens=num_kv_blocks(checkpoint, config) * config.block_size,
        aliases=options.aliases,
        default_overflow=options.context_overflow,
        chat_template=_chat_template(checkpoint, options, tokenizer),
        constraints=_constraints(checkpoint, tokenizer),
        max_num_sequences=options.max_num_sequences,
        allow_routed_experts=options.allow_routed_experts,
        generation_config=options.generation_config,
    )


def _constraints(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> ConstraintCompiler | None:
    if tokenizer is None:
        return None
    return ConstraintCompiler(tokenizer, checkpoint.config.vocab_size, checkpoint.generation.eos_token_ids)


def _chat_template(
    checkpoint: Checkpoint, options: ModelOptions, tokenizer: Tokenizer | None
) -> ChatTemplate | None:
    """The file that was named, else the checkpoint's own."""
    if options.chat_template is not None:
        data = read_file(options.chat_template, max_size=MAX_CHAT_TEMPLATE_BYTES, follow_links=True)
        source: str | None = data.decode(errors="replace")
    else:
        source = checkpoint.read_chat_template()
    if source is None or tokenizer is None:
        return None
    special = {"bos_token": checkpoint.generation.bos_token_id}
    special["eos_token"] = next(iter(checkpoint.generation.eos_token_ids), None)
    texts = {name: _text_of(tokenizer, token_id) for name, token_id in special.items()}
    return ChatTemplate(source, **texts)


def _text_of(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.token_bytes(token_id).decode(errors="replace")


def _tokenizer(checkpoint: Checkpoint, data: bytes) -> Tokenizer:
    eos = checkpoint.generation.eos_token_ids
    return Tokenizer.from_bytes(data, checkpoint.generation.bos_token_id, eos[0] if eos else None)


@contextmanager
def open_experts(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    workers: WorkersConfig,
    observers: Sequence[PoolObserver] = (),
) -> Iterator[ExpertBackend]:
    """The experts, in this process or in workers that end with the block."""
    if workers.num_workers == 0:
        device = engine.resolve_device()
        kernels = choose_kernels(engine.kernels, device, engine.num_threads)
        yield load_local_experts(
            checkpoint, engine.dtype, device, kernels, int8=engine.expert_dtype == "int8"
        )
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
        options = PoolOptions(
            call_timeout=workers.call_timeout,
            start_timeout=workers.start_timeout,
            wire_dtype=workers.wire_dtype,
            combine=Combine(workers.combine),
        )
        expected = Expected(dtype_name(engine.dtype), checkpoint.fingerprint)
        pool = ExpertPool.connect(placement, transport, options, expected, PoolObservers(observers))
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
        kernels=engine.kernels,
        int8=engine.expert_dtype == "int8",
    )


@contextmanager
def _open_transport(specs: Sequence[WorkerSpec], config: WorkersConfig) -> Iterator[Transport]:
    """Started workers and the way to them; both end with the block."""
    if config.transport == "in-process":
        yield InProcessTransport({spec.rank: ExpertWorker.load(spec) for spec in specs})
        return
    address, tls_paths = config.ray_address, data_tls(config)
    cluster = (
        RayCluster.start_local(hidden=[API_KEY_VARIABLE])
        if address is None
        else RayCluster.connect(address, insecure=config.insecure)
    )
    try:
        actors = RayWorkers.start(
            specs,
            namespace=config.ray_namespace,
            timeout=config.start_timeout,
            replace=config.replace_workers,
            # A cluster of our own is on this machine alone, and so is its data plane.
            data_plane=DataPlane("127.0.0.1" if address is None else None, tls_paths),
        )
        try:
            is_stream = config.transport == "stream"
            yield actors.stream_transport(tls=tls_paths) if is_stream else actors.call_transport()
        finally:
            actors.close()
    finally:
        cluster.close()


def data_tls(config: WorkersConfig) -> TlsPaths | None:
    """Raises ConfigError for files that only make sense together."""
    paths = [config.data_tls_cert, config.data_tls_key, config.data_tls_ca]
    given = [str(path.resolve()) for path in paths if path is not None]
    if given and len(given) < len(paths):
        raise ConfigError("--data-tls-cert, --data-tls-key and --data-tls-ca are needed together")
    if config.data_tls_key is not None:
        check_private(config.data_tls_key, "data plane TLS key")
    return TlsPaths(*given) if given else None


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


def topology_of(experts: ExpertBackend) -> Callable[[], Sequence[WorkerView]]:
    """What operators are shown of the workers; nobody where the experts run in this process."""
    if not isinstance(experts, ExpertPool):
        return tuple

    def topology() -> Sequence[WorkerView]:
        return [
            WorkerView(
                rank=worker.rank,
                node_id=worker.node_id,
                device=worker.device,
                state=WorkerState(worker.state.value),
                routed_tokens=worker.routed_rows,
                experts=worker.experts,
            )
            for worker in experts.topology()
        ]

    return topology


def missing_experts_of(experts: ExpertBackend) -> Callable[[], int]:
    """How many experts nobody can compute at the moment."""
    return experts.missing_experts if isinstance(experts, ExpertPool) else int
