"""The arguments that size the engine and its workers, the same for `serve`, `generate` and the benchmarks."""

import argparse
from pathlib import Path

from coordinator.server.settings import EngineSizes, WorkersConfig
from expertmesh.commands.values import MAX_WORKERS, positive, positive_seconds, whole_number
from moe_model.names import DTYPE_NAMES

TRANSPORTS = ("stream", "ray", "in-process")
# More would not be slow but end the process.
MAX_THREADS = 1024


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    default = EngineSizes()
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--dtype",
        choices=DTYPE_NAMES,
        default="float32",
        help="of weights and activations; float32 is exact (float32)",
    )
    group.add_argument(
        "--expert-dtype",
        choices=("model", "int8"),
        default=default.expert_dtype,
        help="of the experts' matrices; int8 halves their memory against bfloat16 and is not exact "
        f"({default.expert_dtype})",
    )
    group.add_argument(
        "--kernels",
        choices=("auto", "native", "torch"),
        default=default.kernels,
        help="what computes, native: our own C, for CPUs; torch: its operations, for any device "
        f"({default.kernels}: native on a CPU, where it was built)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the coordinator computes; workers use CPUs (auto: a GPU if there is one)",
    )
    group.add_argument(
        "--threads",
        type=num_threads,
        metavar="N",
        help="threads of the coordinator's kernels (all cores, as far as a CPU quota goes)",
    )
    _add_sizes(group, default)


def _add_sizes(group: argparse._ArgumentGroup, default: EngineSizes) -> None:
    group.add_argument(
        "--max-batch",
        type=positive,
        default=default.max_num_seqs,
        metavar="N",
        help=f"sequences at once ({default.max_num_seqs})",
    )
    group.add_argument(
        "--max-step-tokens",
        type=positive,
        default=default.max_step_tokens,
        metavar="N",
        help=f"token budget of one step; longer prompts are computed in chunks ({default.max_step_tokens})",
    )
    group.add_argument(
        "--kv-cache-mib",
        type=positive,
        metavar="N",
        help="most memory for keys and values, in MiB (1024; less where there is less than 4 GiB of memory)",
    )
    group.add_argument(
        "--prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute what prompts have in common once (on)",
    )


def add_worker_arguments(parser: argparse.ArgumentParser, default_workers: int) -> None:
    default = WorkersConfig()
    group = parser.add_argument_group("expert workers")
    group.add_argument(
        "--workers",
        type=num_workers,
        default=default_workers,
        metavar="N",
        help=f"expert workers; 0 runs all experts in this process ({default_workers})",
    )
    group.add_argument(
        "--replicas", type=positive, default=1, metavar="R", help="workers that hold each expert (1)"
    )
    _add_loss(group, WorkersConfig())
    group.add_argument(
        "--worker-threads",
        type=num_threads,
        metavar="N",
        help="a worker's threads (its share of the cores here; on a running cluster, all)",
    )
    group.add_argument(
        "--micro-batches",
        choices=("auto", "1", "2"),
        default="auto",
        help="parts of a step in flight: while one is at the workers the next is in attention "
        "(auto: what is measured to be faster)",
    )
    _add_data_plane_arguments(group, default)
    _add_ray_arguments(group, default)
    _add_worker_times(group, default)


def _add_data_plane_arguments(group: argparse._ArgumentGroup, default: WorkersConfig) -> None:
    group.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default=default.transport,
        help="of rows to Ray actors, stream: over a socket; ray: by Ray's calls, which are slower; "
        f"in-process: workers in this process, for tests ({default.transport})",
    )
    group.add_argument(
        "--wire-dtype",
        choices=DTYPE_NAMES,
        default=default.wire_dtype,
        help="of rows on their way to workers; bfloat16 halves the bytes and rounds rows of a float32 model; "
        f"answers are float32 ({default.wire_dtype})",
    )
    group.add_argument(
        "--combine",
        choices=("exact", "sum"),
        default=default.combine,
        help="exact: results never depend on the placement; sum: where a token has more than two experts, "
        f"fewer bytes, rounded according to the placement ({default.combine})",
    )

    for name, what in (
        ("cert", "certificate that both ends of a worker's stream show, in PEM; on every machine"),
        ("key", "its private key, mode 600"),
        ("ca", "the CA that has signed it; all three: TLS between machines"),
    ):
        group.add_argument(f"--data-tls-{name}", type=Path, metavar="FILE", help=what)


def _add_ray_arguments(group: argparse._ArgumentGroup, default: WorkersConfig) -> None:
    group.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="a running cluster, `auto` for the one on this machine (default: start one and end it)",
    )
    group.add_argument(
        "--ray-namespace",
        default=default.ray_namespace,
        metavar="NAME",
        help=f"where the workers' names live ({default.ray_namespace})",
    )
    group.add_argument(
        "--replace-workers", action="store_true", help="end workers that an earlier coordinator left behind"
    )


def _add_loss(group: argparse._ArgumentGroup, default: WorkersConfig) -> None:
    group.add_argument(
        "--on-expert-loss",
        choices=("auto", "replica", "reload", "local", "wait", "fail"),
        default=default.on_expert_loss,
        help="what becomes of rows whose worker is lost. auto: a replica, else their experts are loaded on "
        "another worker, else in the coordinator, else they wait; reload, local: only one of them; wait: a "
        "replica, else they wait; replica: a replica, else they fail; fail: they fail "
        f"({default.on_expert_loss})",
    )
    group.add_argument(
        "--redundant-experts",
        type=whole,
        default=default.redundant_experts,
        metavar="N",
        help=f"further copies in each layer, of the experts with the most rows ({default.redundant_experts})",
    )
    _add_care(group, default)


def _add_care(group: argparse._ArgumentGroup, default: WorkersConfig) -> None:
    group.add_argument(
        "--workers-per-node",
        type=whole,
        default=default.workers_per_node,
        metavar="K",
        help="follow the cluster: K workers for each machine there is, as they come and go; 0: --workers and "
        f"`expertmesh scale` say how many ({default.workers_per_node})",
    )
    group.add_argument(
        "--rebalance-interval",
        type=seconds,
        default=default.rebalance_interval,
        metavar="S",
        help="seconds between two looks at whether experts should move to busy workers from idle ones; "
        f"0: never ({default.rebalance_interval:g})",
    )
    group.add_argument(
        "--canary-interval",
        type=seconds,
        default=default.canary_interval,
        metavar="S",
        help="seconds between two looks at whether the experts' weights are still what was loaded; 0: never "
        f"({default.canary_interval:g})",
    )
    group.add_argument(
        "--keep-workers",
        action="store_true",
        help="leave the workers running at the end, for the next coordinator (needs --ray-address)",
    )
    group.add_argument(
        "--take-over",
        action="store_true",
        help="use running workers even if another coordinator still does; that one then stops",
    )


def _add_worker_times(group: argparse._ArgumentGroup, default: WorkersConfig) -> None:
    group.add_argument(
        "--call-timeout",
        type=positive_seconds,
        default=default.call_timeout,
        metavar="S",
        help=f"seconds an expert call may take before its worker counts as lost ({default.call_timeout:g})",
    )
    group.add_argument(
        "--expert-wait-timeout",
        type=positive_seconds,
        default=default.expert_wait_timeout,
        metavar="S",
        help="seconds that requests wait for lost experts before they end UNAVAILABLE "
        f"({default.expert_wait_timeout:g})",
    )
    group.add_argument(
        "--start-timeout",
        type=positive_seconds,
        default=default.start_timeout,
        metavar="S",
        help=f"seconds the workers may take to load ({default.start_timeout:g})",
    )


def add_insecure_argument(parser: argparse.ArgumentParser) -> None:
    """For commands that have none of a server's arguments."""
    parser.add_argument(
        "--insecure", action="store_true", help="use --ray-address also where Ray asks nobody for a token"
    )


def workers_config(args: argparse.Namespace, *, insecure: bool = False) -> WorkersConfig:
    return WorkersConfig(
        num_workers=args.workers,
        replicas=args.replicas,
        transport=args.transport,
        wire_dtype=args.wire_dtype,
        combine=args.combine,
        data_tls_cert=args.data_tls_cert,
        data_tls_key=args.data_tls_key,
        data_tls_ca=args.data_tls_ca,
        ray_address=args.ray_address,
        ray_namespace=args.ray_namespace,
        replace_workers=args.replace_workers,
        on_expert_loss=args.on_expert_loss,
        redundant_experts=args.redundant_experts,
        workers_per_node=args.workers_per_node,
        rebalance_interval=args.rebalance_interval,
        canary_interval=args.canary_interval,
        keep_workers=args.keep_workers,
        take_over=args.take_over,
        insecure=insecure,
        num_threads=args.worker_threads,
        call_timeout=args.call_timeout,
        expert_wait_timeout=args.expert_wait_timeout,
        start_timeout=args.start_timeout,
    )


def whole(text: str) -> int:
    return whole_number(text, 0, MAX_WORKERS)


def num_threads(text: str) -> int:
    return whole_number(text, 1, MAX_THREADS)


def num_workers(text: str) -> int:
    return whole_number(text, 0, MAX_WORKERS)


def seconds(text: str) -> float:
    """0 is none."""
    return 0.0 if text.strip() == "0" else positive_seconds(text)
