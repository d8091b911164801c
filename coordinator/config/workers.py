"""The expert workers: how many, what they hold, how rows reach them, and what becomes of lost ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from expert_workers.transports.table import TRANSPORTS
from expertmesh.commands.options import Group, Option
from expertmesh.commands.values import (
    number_of_threads,
    number_of_workers,
    positive,
    positive_seconds,
    rate,
    seconds,
)
from moe_model.errors import ConfigError
from moe_model.names import DtypeName


@dataclass(frozen=True, slots=True)
class DataTls:
    """PEM files, at the same paths on every machine: TLS between coordinator and workers."""

    cert: Annotated[
        Path,
        Option(
            "--data-tls-cert",
            metavar="FILE",
            help="certificate that both ends of a worker's stream show, in PEM; on every machine",
        ),
    ]
    key: Annotated[Path, Option("--data-tls-key", metavar="FILE", help="its private key, mode 600")]
    ca: Annotated[
        Path,
        Option(
            "--data-tls-ca", metavar="FILE", help="the CA that has signed it; all three: TLS between machines"
        ),
    ]


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """0 workers: all experts run in the coordinator's process. `replicas` and `redundant_experts` are met as
    far as there are workers, now and whenever there are more. Times are in seconds."""

    num_workers: Annotated[
        int,
        Option(
            "--workers",
            parse=number_of_workers,
            metavar="N",
            help="expert workers; 0 runs all experts in this process (%(default)s)",
        ),
    ] = 0
    replicas: Annotated[
        int,
        Option("--replicas", parse=positive, metavar="R", help="workers that hold each expert (%(default)s)"),
    ] = 1
    on_expert_loss: Annotated[
        Literal["auto", "replica", "reload", "local", "wait", "fail"],
        Option(
            "--on-expert-loss",
            help="what becomes of rows whose worker is lost. auto: a replica, else their experts are loaded "
            "on another worker, else in the coordinator, else they wait; reload, local: only one of them; "
            "wait: a replica, else they wait; replica: a replica, else they fail; fail: they fail "
            "(%(default)s)",
        ),
    ] = "auto"
    redundant_experts: Annotated[
        int,
        Option(
            "--redundant-experts",
            parse=number_of_workers,
            metavar="N",
            help="further copies in each layer, of the experts with the most rows (%(default)s)",
        ),
    ] = 0
    workers_per_node: Annotated[
        int,
        Option(
            "--workers-per-node",
            parse=number_of_workers,
            metavar="K",
            help="follow the cluster, whatever --workers says: K workers for each machine there is, as they "
            "come and go; 0: --workers and `expertmesh scale` say how many (%(default)s)",
        ),
    ] = 0
    min_machines: Annotated[
        int,
        Option(
            "--min-machines",
            parse=positive,
            metavar="M",
            help="with --workers-per-node: the start waits until there are so many machines, at most "
            "--start-timeout (%(default)s)",
        ),
    ] = 1
    fetch_rate: Annotated[
        float,
        Option(
            "--fetch-rate",
            parse=rate,
            metavar="MB",
            help="megabytes a second of the model's files that a machine sends, and that one without them "
            "fetches, while no request waits for them; 0: no limit (%(default)g)",
        ),
    ] = 32.0
    rebalance_interval: Annotated[
        float,
        Option(
            "--rebalance-interval",
            parse=seconds,
            metavar="S",
            help="seconds between two looks at whether experts should move to busy workers from idle ones; "
            "0: never (%(default)g)",
        ),
    ] = 60.0
    canary_interval: Annotated[
        float,
        Option(
            "--canary-interval",
            parse=seconds,
            metavar="S",
            help="seconds between two looks at whether the experts' weights are still what was loaded; "
            "0: never (%(default)g)",
        ),
    ] = 30.0
    keep_workers: Annotated[
        bool,
        Option(
            "--keep-workers",
            help="leave the workers running at the end, for the next coordinator (needs --ray-address)",
        ),
    ] = False
    take_over: Annotated[
        bool,
        Option(
            "--take-over",
            help="use running workers even if another coordinator still does; that one then stops",
        ),
    ] = False
    num_threads: Annotated[
        int | None,
        Option(
            "--worker-threads",
            parse=number_of_threads,
            metavar="N",
            help="a worker's threads (twice its share of the cores here; on a running cluster, all)",
        ),
    ] = None
    transport: Annotated[
        str,
        Option(
            "--transport",
            choices=tuple(TRANSPORTS),
            help=f"of rows to Ray actors, {'; '.join(f'{n}: {row.help}' for n, row in TRANSPORTS.items())} "
            "(%(default)s)",
        ),
    ] = "stream"
    wire_dtype: Annotated[
        DtypeName,
        Option(
            "--wire-dtype",
            help="of rows on their way to workers; bfloat16 halves the bytes and rounds rows of a float32 "
            "model; answers are float32 (%(default)s)",
        ),
    ] = "float32"
    combine: Annotated[
        Literal["exact", "sum"],
        Option(
            "--combine",
            help="exact: results never depend on the placement; sum: where a token has more than two "
            "experts, fewer bytes, rounded according to the placement (%(default)s)",
        ),
    ] = "exact"
    data_tls: Annotated[DataTls | None, Group()] = None
    cluster: Annotated[
        Path | None,
        Option(
            "--cluster",
            bare=Path("~/.expertmesh/cluster"),
            one_of="ray",
            metavar="DIR",
            help="the cluster of `expertmesh head` on this machine: its Ray, tokens and TLS, which DIR has "
            "(~/.expertmesh/cluster)",
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        Option(
            "--ray-address",
            one_of="ray",
            metavar="HOST:PORT",
            help="a running cluster, `auto` for the one on this machine (default: start one and end it)",
        ),
    ] = None
    ray_namespace: Annotated[
        str, Option("--ray-namespace", metavar="NAME", help="where the workers' names live (%(default)s)")
    ] = "expertmesh"
    replace_workers: Annotated[
        bool, Option("--replace-workers", help="end workers that an earlier coordinator left behind")
    ] = False
    call_timeout: Annotated[
        float,
        Option(
            "--call-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds an expert call may take before its worker counts as lost (%(default)g)",
        ),
    ] = 10.0
    expert_wait_timeout: Annotated[
        float,
        Option(
            "--expert-wait-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds that requests wait for lost experts before they end UNAVAILABLE (%(default)g)",
        ),
    ] = 30.0
    start_timeout: Annotated[
        float,
        Option(
            "--start-timeout",
            parse=positive_seconds,
            metavar="S",
            help="seconds the workers may take to start, and to load one layer (%(default)g)",
        ),
    ] = 120.0
    insecure: Annotated[
        bool, Option("--insecure", is_shared=True, help="use --ray-address also where Ray asks for no token")
    ] = False
    # What a plan says besides options; a server's --plan sets it.
    plan: Path | None = None
    plan_machines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cluster is not None and self.data_tls is not None:
            raise ConfigError("--cluster has certificates of its own: leave out --data-tls-cert")
        if self.is_on_running_ray and not self.has_workers:
            name = "--cluster" if self.cluster is not None else "--ray-address"
            raise ConfigError(f"{name} is for expert workers: say --workers N, or --workers-per-node K")
        if self.min_machines > 1 and not self.workers_per_node:
            raise ConfigError("--min-machines is for workers that follow machines: say --workers-per-node K")

    @property
    def is_on_running_ray(self) -> bool:
        """Whether the workers are on a cluster that runs, and may have other machines."""
        return self.ray_address is not None or self.cluster is not None

    @property
    def has_workers(self) -> bool:
        """Whether experts are on workers at all."""
        return self.num_workers > 0 or self.workers_per_node > 0

    @property
    def needs_own_ray(self) -> bool:
        """Whether a Ray of the server's own has to be started."""
        return self.has_workers and not self.is_on_running_ray and TRANSPORTS[self.transport].needs_ray
