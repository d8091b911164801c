"""What an engine tells of itself when it is asked."""

from dataclasses import dataclass, field

from expert_workers.status import WorkerStatus
from moe_model.versions.expert_versions import ExpertModule


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot between two steps. Running and waiting are sequences; `prefix_*` count prompt tokens. Blocks
    are those of all groups of the KV cache, `kv_usage` is the part in use of the fullest one, in [0, 1];
    `kv_capacity_tokens` are what one sequence can have at most.

    `lost`: the engine's process is gone; it is `stopped` until it is started again. `silent_seconds`: for so
    long nothing was heard of that process."""

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    kv_usage: float = 0.0
    kv_capacity_tokens: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    stopped: bool = False
    lost: bool = False
    silent_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """The expert workers, by rank; none where all experts are in the engine's process.

    `missing` are the modules that cannot be computed at the moment; the expert with the fewest holders is on
    `num_replicas` workers. `certificate_end` is when the first of the certificates between machines ends, in
    seconds since 1970; None where there are none.
    """

    workers: tuple[WorkerStatus, ...] = ()
    missing: tuple[ExpertModule, ...] = ()
    num_replicas: int = 0
    certificate_end: float | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the newest version of the model consists of. `experts` are the ids of each layer, which new
    requests may select; `exchanged` are the modules that are not the checkpoint's; `changes` counts those so
    far, by kind."""

    experts: tuple[tuple[int, ...], ...]
    version: int = 0
    exchanged: tuple[ExpertModule, ...] = ()
    changes: dict[str, int] = field(default_factory=dict)
