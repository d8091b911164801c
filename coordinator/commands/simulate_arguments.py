"""The arguments of `expertmesh simulate`."""

import argparse
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated

from coordinator.commands.model_options import JSON, LAYERS, MODEL, TRACE
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from expertmesh.commands.options import Group, Option, add_options
from expertmesh.commands.values import index, number_of_fronts, positive, positive_number, seconds
from moe_model.errors import ConfigError

_ENGINE = (
    *("dtype", "expert_dtype", "shared_dtype", "max_num_seqs", "max_step_tokens", "max_gap_ms"),
    *("kv_cache_bytes", "micro_batches", "num_threads"),
)
_WORKERS = (
    *("num_workers", "replicas", "redundant_experts", "wire_dtype", "combine", "on_expert_loss"),
    *("call_timeout", "expert_wait_timeout", "num_threads"),
)


@dataclass(frozen=True, slots=True)
class MachineArguments:
    """One machine as all are, where no file says. The defaults are those of a machine that is assumed."""

    cores: Annotated[
        float, Option("--worker-cores", parse=positive_number, metavar="N", help="cores (%(default)g)")
    ] = 32.0
    memory_gb: Annotated[
        float,
        Option("--memory", parse=positive_number, metavar="GB", help="memory, of 1e9 bytes (%(default)g)"),
    ] = 256.0
    gbytes_per_s: Annotated[
        float,
        Option("--gbytes", parse=positive_number, metavar="GB", help="memory's GB a second (%(default)g)"),
    ] = 200.0
    gflops: Annotated[
        float,
        Option(
            "--gflops",
            parse=positive_number,
            metavar="N",
            help="1e9 operations a second of bfloat16 products (%(default)g)",
        ),
    ] = 3000.0
    disk_mb_per_s: Annotated[
        float, Option("--disk", parse=positive_number, metavar="MB", help="disk's MB a second (%(default)g)")
    ] = 3000.0
    link: Annotated[
        str,
        Option(
            "--link",
            metavar="GBIT,MS[,LOSS]",
            help="between any two: gigabits a second, milliseconds one way, percent of packets lost "
            "(%(default)s)",
        ),
    ] = "10,0.05"


@dataclass(frozen=True, slots=True)
class LoadArguments:
    """What is asked of the servers."""

    concurrency: Annotated[
        int | None,
        Option(
            "--concurrency",
            one_of="load",
            parse=positive,
            metavar="B",
            help="requests at once (8 without --rate)",
        ),
    ] = None
    rate: Annotated[
        float | None,
        Option(
            "--rate", one_of="load", parse=positive_number, metavar="R", help="requests a second, by chance"
        ),
    ] = None
    requests: Annotated[
        int | None,
        Option(
            "--requests",
            parse=positive,
            metavar="N",
            help="in all (four for each at once, or ten seconds of a rate; at least 16)",
        ),
    ] = None
    prompt_tokens: Annotated[
        int, Option("--prompt-tokens", parse=positive, metavar="N", help="of each request (%(default)s)")
    ] = 128
    output_tokens: Annotated[
        int, Option("--output-tokens", parse=positive, metavar="N", help="of each request (%(default)s)")
    ] = 64
    steady: Annotated[
        bool,
        Option(
            "--steady",
            help="decoding alone, with all prompts in the cache: a few steps, until their time is known",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class SimulateArguments:
    """Which model on which machines, and what happens to them; or a grid of these."""

    model: Annotated[Path | None, MODEL] = None
    machines: Annotated[
        Path | None,
        Option(
            "--machines",
            metavar="FILE",
            help="what `expertmesh probe` wrote: the first --coordinators of them have these, the others the "
            "workers",
        ),
    ] = None
    plan: Annotated[
        Path | None, Option("--plan", metavar="FILE", help="which worker holds what, by `expertmesh plan`")
    ] = None
    coordinators: Annotated[
        int,
        Option(
            "--coordinators",
            parse=number_of_fronts,
            metavar="C",
            help="servers that share the workers, each on a machine of its own (%(default)s)",
        ),
    ] = 1
    fail: Annotated[
        tuple[str, ...],
        Option(
            "--fail",
            metavar="[KIND:]WORKER@S",
            help="what happens to a worker at a second: kill (default), or for a second pause, slow or cut; "
            "may be repeated",
        ),
    ] = ()
    restart_s: Annotated[
        float,
        Option(
            "--restart",
            parse=seconds,
            metavar="S",
            help="seconds until a process that died is there again, before it loads (%(default)g)",
        ),
    ] = 5.0
    trace: Annotated[str | None, TRACE] = None
    layers: Annotated[int | None, LAYERS] = None
    seed: Annotated[int, Option("--seed", parse=index, metavar="N", help="of all chance (%(default)s)")] = 0
    grid: Annotated[
        Path | None,
        Option("--grid", metavar="FILE", help="models x workers x links x batches, decoding: a table of all"),
    ] = None
    out: Annotated[Path | None, Option("--out", metavar="FILE", help="of --grid: write its rows as CSV")] = (
        None
    )
    json: Annotated[bool, JSON] = False
    machine: Annotated[MachineArguments, Group("machines, where no --machines says them")] = field(
        default_factory=MachineArguments
    )
    load: Annotated[LoadArguments, Group("load")] = field(default_factory=LoadArguments)
    workers: Annotated[WorkersConfig, Group("expert workers", only=_WORKERS)] = field(
        default_factory=WorkersConfig
    )
    engine: Annotated[EngineConfig, Group("engine", only=_ENGINE)] = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.grid is None):
            raise ConfigError("say one of MODEL and --grid FILE")
        if self.out is not None and self.grid is None:
            raise ConfigError("--out is for a grid's rows: say --grid FILE")
        if self.grid is not None:
            self._refuse_others()
        if self.load.steady and (self.fail or self.load.rate is not None):
            raise ConfigError("--steady is of streams that go on: without --fail and --rate")

    def _refuse_others(self) -> None:
        """A grid's file says all that is simulated."""
        for each in fields(self):
            usual = each.default if each.default is not MISSING else None
            if each.default_factory is not MISSING:
                usual = each.default_factory()
            if each.name not in ("grid", "out", "json") and getattr(self, each.name) != usual:
                raise ConfigError(f"--grid: its file says all; leave out what is said of {each.name}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, SimulateArguments)
