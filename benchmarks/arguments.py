"""The arguments of `expertmesh bench`. Apart from what they run: these load no torch."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from benchmarks.bars.rows import ROWS
from benchmarks.peers import verdict
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from expertmesh.commands.options import Group, add_options
from expertmesh.commands.parser import OneLineParser
from moe_model.names import DTYPE_NAMES

ALL_LLAMA_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
# As in peers/models.py, which loads torch.
PEER_MODELS = ("mixtral", "qwen3_moe")
# As in published/.
LOADED_MODELS = ("qwen3-30b-a3b", "gpt-oss-20b", "olmoe-1b-7b", "mixtral-8x7b", "deepseek-v2-lite")
# Of one worker's rows in `bench dispatch`, in bytes.
SIZES = {"2 KiB": 1 << 11, "64 KiB": 1 << 16, "1 MiB": 1 << 20}
SYSTEMS = (
    verdict.OURS,
    verdict.LLAMA,
    verdict.TRANSFORMERS,
    verdict.OURS_WORKERS,
    *verdict.OURS_ROUNDED,
    verdict.ORIGIN,
)


_BFLOAT16 = EngineConfig(dtype="bfloat16")


@dataclass(frozen=True, slots=True)
class EngineBenchmark:
    """What of the product's configuration `bench engine` varies."""

    engine: Annotated[
        EngineConfig,
        Group(
            only=(
                "dtype",
                "expert_dtype",
                "shared_dtype",
                "expert_slices",
                "kernels",
                "num_threads",
                "micro_batches",
            )
        ),
    ] = _BFLOAT16
    workers: Annotated[WorkersConfig, Group(only=("replicas", "transport"))] = field(
        default_factory=WorkersConfig
    )


@dataclass(frozen=True, slots=True)
class ServeBenchmark:
    """The same of `bench serve`."""

    engine: Annotated[EngineConfig, Group(only=("dtype", "num_threads"))] = _BFLOAT16


def engine() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="expertmesh bench engine", description="Prefill and decode rates, alone and with expert workers."
    )
    parser.add_argument("--checkpoint", type=Path, help="default: a random 54.6 M model, made for the run")
    add_options(parser, EngineBenchmark)
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32, 64])
    parser.add_argument("--workers", type=numbers, default=[0, 2], help="0: in this process")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--no-split", action="store_true", help="rates only")
    add_out_argument(parser)
    return parser


def serve() -> argparse.ArgumentParser:
    made = OneLineParser(
        prog="expertmesh bench serve",
        description="What gRPC leaves of the engine's rate, and what a client waits for: in each "
        "round the engine alone, then a server under closed-loop clients, then under Poisson arrivals.",
    )
    made.add_argument("--checkpoint", type=Path, help="default: a random 54.6 M model, made for the run")
    add_options(made, ServeBenchmark)
    made.add_argument("--workers", type=numbers, default=[0, 2], help="expert workers; 0: none (0,2)")
    made.add_argument("--clients", type=numbers, default=[1, 8, 32], help="closed-loop clients (1,8,32)")
    made.add_argument(
        "--rates", type=_rates, default=[2.0, 8.0], help="requests a second; '' for no open loop (2,8)"
    )
    made.add_argument("--requests", type=int, default=4, help="of each closed-loop client (4)")
    made.add_argument("--seconds", type=float, default=10.0, help="for which an open loop sends (10)")
    made.add_argument("--rounds", type=int, default=3, help="of engine and server in turns (3)")
    made.add_argument("--prompt-tokens", type=int, default=32)
    made.add_argument("--new-tokens", type=int, default=64)
    made.add_argument("--seed", type=int, default=0, help="of the arrivals of the first round (0)")
    add_out_argument(made)
    return made


def dispatch() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="expertmesh bench dispatch",
        description="One dispatch to expert workers and back, per transport.",
    )
    parser.add_argument("--workers", type=numbers, default=[1, 2])
    parser.add_argument(
        "--sizes", type=_choices(*SIZES), default=list(SIZES), help=f"some of {','.join(SIZES)} (all)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure and round")
    parser.add_argument("--rounds", type=int, default=3)
    add_out_argument(parser)
    return parser


def peers() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="expertmesh bench peers",
        description="Our engine beside what a user would take instead, on the same weights.",
    )
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, default="bfloat16", help="of ours and of transformers"
    )
    parser.add_argument(
        "--llama-types",
        type=_choices(*ALL_LLAMA_TYPES),
        help=f"of llama.cpp's weights: some of {','.join(ALL_LLAMA_TYPES)} "
        "(as many bytes as --dtype, q8_0 and q4_0)",
    )
    parser.add_argument(
        "--systems", type=_choices(*SYSTEMS), default=list(SYSTEMS), help=f"some of {','.join(SYSTEMS)} (all)"
    )
    parser.add_argument(
        "--models",
        type=_choices(*PEER_MODELS),
        default=list(PEER_MODELS),
        help=f"some of {','.join(PEER_MODELS)} (all)",
    )
    parser.add_argument("--threads", type=int, default=2, help="of every system, workers included (2)")
    parser.add_argument("--workers", type=int, default=2, help="of ours-workers (2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=512, help="one long prompt; 0: none (512)")
    add_out_argument(parser)
    return parser


def bars() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="expertmesh bench bars",
        description="Every bar that was set for the engine and its fronts, what is measured now, and whether "
        "it is met. Takes a quarter of an hour on a machine that does nothing else.",
    )
    parser.add_argument(
        "--only", type=_choices(*ROWS), default=list(ROWS), help=f"some of {','.join(ROWS)} (all)"
    )
    parser.add_argument(
        "--beside",
        metavar="TREE",
        type=lambda text: str(Path(text).resolve()),
        help="a built tree of an older commit: what start and memory are compared with",
    )
    parser.add_argument("--quick", action="store_true", help="seconds a row: tries the benchmarks themselves")
    add_out_argument(parser)
    return parser


def families() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="expertmesh bench families",
        description="What a decode step costs per byte of weights, beside one of ModularForge's.",
    )
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="bfloat16", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32], help="(1,8,32)")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7, help="of all models in turns (7)")
    add_out_argument(parser)
    return parser


def loading() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="expertmesh bench loading",
        description="What a server's processes read, keep and wait for when they load models in true shapes.",
    )
    parser.add_argument(
        "--models",
        type=_choices(*LOADED_MODELS),
        default=list(LOADED_MODELS),
        help=f"some of {','.join(LOADED_MODELS)} (all)",
    )
    parser.add_argument("--workers", type=numbers, default=[2, 3], help="beside none (2,3)")
    parser.add_argument(
        "--gigabytes",
        type=float,
        default=5.6,
        help="of a model, by leaving out its last layers (%(default)s)",
    )
    parser.add_argument(
        "--folder", type=Path, help="where models are written (the system's for temporary files)"
    )
    add_out_argument(parser)
    return parser


def add_out_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="keep the result, with its circumstances, in this folder"
    )


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _rates(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def _choices(*known: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name[:80]!r} is none of {', '.join(known)}")
        return names

    return parse


PARSERS = {
    "bars": bars,
    "engine": engine,
    "serve": serve,
    "dispatch": dispatch,
    "families": families,
    "peers": peers,
    "loading": loading,
}
