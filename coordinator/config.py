"""What a coordinator can be told, as frozen values. The command line fills them, main.py uses them."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from coordinator.engine.kv_cache import DEFAULT_BLOCK_SIZE
from coordinator.engine.request import ContextOverflow
from moe_model.errors import ConfigError

DEFAULT_MAX_OUTPUT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of the engine. `num_threads` None leaves torch's own choice."""

    dtype: torch.dtype = torch.float32
    device: str = "auto"
    num_threads: int | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    kv_cache_bytes: int = 1 << 30
    max_num_seqs: int = 64
    max_step_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("block_size", "kv_cache_bytes", "max_num_seqs", "max_step_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is less than 1")

    def resolve_device(self) -> torch.device:
        """`auto` is a GPU when there is one. Raises ConfigError for a GPU that there is not."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: cuda was asked for and torch sees no GPU")
        return torch.device(self.device)


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """The expert workers. 0 workers: all experts run in the coordinator's process."""

    num_workers: int = 0
    replicas: int = 1
    transport: str = "ray"
    ray_address: str | None = None
    ray_namespace: str = "expertmesh"
    replace_workers: bool = False
    num_threads: int | None = None
    call_timeout: float = 10.0
    expert_wait_timeout: float = 30.0
    start_timeout: float = 120.0

    @property
    def num_replicas(self) -> int:
        """As asked for, as far as there are workers: a second copy on one worker saves nothing."""
        return min(self.replicas, self.num_workers)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A whole server."""

    checkpoint: Path
    engine: EngineConfig = field(default_factory=EngineConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    grpc_address: str = "127.0.0.1:50051"
    model_name: str | None = None
    max_output_tokens: int = DEFAULT_MAX_OUTPUT_TOKENS
    context_overflow: ContextOverflow = ContextOverflow.STOP
    drain_timeout: float = 30.0
