"""What a coordinator can be told that needs neither torch nor gRPC, with its defaults.

The arguments of the command line come from here, so that `--help` and a completion load nothing heavy.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from coordinator.api.security.api_keys import Limits
from coordinator.api.security.tls import TlsConfig
from coordinator.engine.options import DEFAULT_BLOCK_SIZE, ContextOverflow
from moe_model.errors import ConfigError
from moe_model.names import KernelChoice

DEFAULT_MAX_OUTPUT_TOKENS = 4096
# Half of the queue's default: no key takes all of it from the others.
DEFAULT_KEY_LIMITS = Limits(concurrent=128)


class GenerationConfig(StrEnum):
    """Where the defaults of sampling come from: the checkpoint, or nowhere."""

    MODEL = "model"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSizes:
    """Sizes of the engine. `num_threads` None: all cores that the process may use; `kv_cache_bytes` None:
    1 GiB, or a quarter of the memory that there is for the process; `micro_batches`: how many parts of a step
    are in flight where experts run in workers, None: as measured."""

    expert_dtype: Literal["model", "int8"] = "model"
    kernels: KernelChoice = "auto"
    device: str = "auto"
    num_threads: int | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    kv_cache_bytes: int | None = None
    max_num_seqs: int = 64
    max_step_tokens: int = 512
    prefix_caching: bool = True
    micro_batches: int | None = None

    def __post_init__(self) -> None:
        for name in ("block_size", "kv_cache_bytes", "max_num_seqs", "max_step_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} is less than 1")


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """The expert workers. 0 workers: all experts run in the coordinator's process. `replicas` and
    `redundant_experts` are met as far as there are workers, now and whenever there are more. `insecure`: also
    on a Ray of other machines that lets everybody in."""

    num_workers: int = 0
    replicas: int = 1
    transport: str = "stream"
    wire_dtype: str = "float32"
    combine: str = "exact"
    data_tls_cert: Path | None = None
    data_tls_key: Path | None = None
    data_tls_ca: Path | None = None
    ray_address: str | None = None
    ray_namespace: str = "expertmesh"
    replace_workers: bool = False
    on_expert_loss: str = "auto"
    redundant_experts: int = 0
    workers_per_node: int = 0
    rebalance_interval: float = 60.0
    canary_interval: float = 30.0
    keep_workers: bool = False
    take_over: bool = False
    insecure: bool = False
    num_threads: int | None = None
    call_timeout: float = 10.0
    expert_wait_timeout: float = 30.0
    start_timeout: float = 120.0


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a checkpoint is served. `chat_template` is a file that takes the place of the checkpoint's own."""

    name: str | None = None
    aliases: tuple[str, ...] = ()
    max_output_tokens: int = DEFAULT_MAX_OUTPUT_TOKENS
    max_num_sequences: int = 8
    context_overflow: ContextOverflow = ContextOverflow.STOP
    generation_config: GenerationConfig = GenerationConfig.MODEL
    chat_template: Path | None = None
    allow_routed_experts: bool = False


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens, as HOST:PORT; None: not at all. Metrics are on the HTTP port as well."""

    grpc: str = "127.0.0.1:50051"
    control: str | None = "127.0.0.1:50052"
    http: str | None = "127.0.0.1:8000"
    metrics: str | None = None

    def all(self) -> dict[str, str]:
        """By what listens there."""
        found = {"grpc": self.grpc, "control": self.control, "http": self.http, "metrics": self.metrics}
        return {name: address for name, address in found.items() if address is not None}


@dataclass(frozen=True, slots=True)
class ObservabilityConfig:
    """Logs, metrics and traces. `otlp_endpoint` None: no traces."""

    log_format: str = "text"
    log_level: str = "info"
    vllm_names: bool = False
    otlp_endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """`max_requests` bounds sequences that run or wait, `max_tokens` the prompt tokens of those that wait."""

    max_requests: int = 256
    max_tokens: int = 1 << 18


@dataclass(frozen=True, slots=True)
class ReadinessConfig:
    """Seconds; `patience` is how many bad looks in a row make a server not ready."""

    interval: float = 0.25
    stall_timeout: float = 60.0
    patience: int = 2


@dataclass(frozen=True, slots=True)
class SecurityConfig:
    """`reflection` None: on as long as there are no keys. `key_limits` are for keys whose line has none."""

    api_key_file: Path | None = None
    key_limits: Limits = DEFAULT_KEY_LIMITS
    tls: TlsConfig | None = None
    insecure: bool = False
    reflection: bool | None = None
    max_request_seconds: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTimes:
    """Seconds that a client may read nothing, that a quiet HTTP connection is kept, that balancers get to
    hear of the end, and that calls get."""

    write_stall_timeout: float = 60.0
    # Longer than the pools of proxies keep theirs (60 to 75 s): the server, which a request may be on its way
    # to, must not be the one that closes.
    keep_alive_timeout: float = 90.0
    withdrawal_grace: float = 5.0
    drain_timeout: float = 30.0
