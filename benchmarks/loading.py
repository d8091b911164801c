"""What starting a server costs for models in true shapes: `expertmesh bench loading`.

Of each model the first layers that fit --gigabytes, with random weights, as a Hugging Face folder, one on the
disk at a time. A server is started without workers and with each number of them. Measured of each process:
what it reads and keeps beside what the same process of a tiny model does, against the bytes of its experts;
how long it takes until READY, against the rate of the disk; and whether all say the same tokens.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from time import perf_counter

import torch

from benchmarks import arguments
from benchmarks.load import Clients, prompt_of, request
from benchmarks.process_usage import Usage, disk_rate, evict, usage
from benchmarks.report import Report, reporting
from benchmarks.server_process import ServerProcess, serving
from expertmesh import ControlClient
from moe_model.checkpoint.exporter import ExportOptions, export_checkpoint
from moe_model.checkpoint.like import config_like
from moe_model.checkpoint.random_model import RandomModel
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.footprint import Footprint, footprint

PUBLISHED = Path(__file__).parent / "published"
SHARD_BYTES = 10**9
START_TIMEOUT = 600.0
PROMPT_TOKENS, NEW_TOKENS, NUM_PROMPTS = 24, 16, 4
# What a process may read and keep beyond: headers and samples of files; freed memory that is used again.
READ_SLACK, KEPT_SLACK = 32 << 20, 128 << 20
LOADING_SLACK, START_SLACK = 1 << 30, 5.0
_DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Part:
    """What one process is to load. Bytes: of its tensors in the files, and of what it keeps of them."""

    name: str
    num_experts: int
    stored_bytes: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class Start:
    """`tokens`: greedy ones, of each prompt. `processes`: the engine's first, then the workers."""

    seconds: float
    processes: list[tuple[Part, Usage]]
    tokens: list[list[int]]


def largest_cut(path: Path, max_bytes: int) -> ModelConfig:
    """With as many layers as there is room for, at least one of them with experts."""
    whole = config_like(path)
    first = whole.moe_layers[0] + 1
    fitting = [config_like(path, first)]
    for layers in range(first + 1, whole.n_layers + 1):
        config = config_like(path, layers)
        if model_bytes(config) > max_bytes:
            break
        fitting.append(config)
    return fitting[-1]


def shared_bytes(config: ModelConfig) -> int:
    shapes = family_of(config).shared_shapes(config).values()
    return sum(prod(shape) for shape in shapes) * _DTYPE.itemsize


def model_bytes(config: ModelConfig) -> int:
    return shared_bytes(config) + footprint(config, _DTYPE).experts_bytes


def start(folder: Path, config: ModelConfig, num_workers: int, log: Path) -> Start:
    """From the disk until READY; and what it then says."""
    evict(folder)
    options = [f"--workers={num_workers}", "--dtype=bfloat16", "--kv-cache-mib=64"]
    started = perf_counter()
    with serving(folder, options, log, START_TIMEOUT) as server:
        seconds = perf_counter() - started
        processes = list(_processes(server, config, num_workers))
        return Start(seconds, processes, asyncio.run(_tokens(server, config.vocab_size)))


def _processes(server: ServerProcess, config: ModelConfig, num_workers: int) -> Iterator[tuple[Part, Usage]]:
    sizes = footprint(config, _DTYPE)
    held = 0 if num_workers else sizes.num_modules
    own = held * sizes.expert_bytes
    part = Part("engine", held, shared_bytes(config) + own, sizes.shared_bytes + own)
    yield part, usage(server.engine_pid())
    with ControlClient(server.control_address) as control:
        for worker in control.topology(include_experts=True) if num_workers else ():
            held = sum(len(layer.expert_ids) for layer in worker.layers)
            own = held * sizes.expert_bytes
            yield Part(f"worker {worker.rank}", held, own, own), usage(worker.pid)


async def _tokens(server: ServerProcess, vocab_size: int) -> list[list[int]]:
    clients = Clients(server.address, 1)
    prompts = [prompt_of(index, PROMPT_TOKENS, vocab_size) for index in range(NUM_PROMPTS)]
    try:
        return [list((await clients.run(request(prompt, NEW_TOKENS))).token_ids) for prompt in prompts]
    finally:
        await clients.close()


@dataclass(frozen=True, slots=True)
class Row:
    """Of one process. Bytes beside those of a tiny model; `is_met`: of what it read, kept and had at most."""

    workers: int
    part: Part
    read: int
    from_disk: int
    rss: int
    pss: int
    peak: int
    is_met: Mapping[str, bool]


def row(workers: int, part: Part, found: Usage, base: Usage, sizes: Footprint) -> Row:
    read, rss = found.read - base.read, found.rss - base.rss
    peak = found.peak - base.rss
    is_met = {
        "read": read <= 1.01 * part.stored_bytes + READ_SLACK,
        "kept": rss <= 1.02 * part.kept_bytes + KEPT_SLACK,
        "peak": peak <= rss + 2 * sizes.expert_bytes + LOADING_SLACK,
    }
    return Row(workers, part, read, found.from_disk, rss, found.pss - base.pss, peak, is_met)


def measure(
    name: str, config: ModelConfig, numbers: Sequence[int], bases: Mapping[int, Start], made: Path
) -> dict[str, object]:
    """One model; its folder is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="expertmesh-loading-", dir=made) as temporary:
        folder, log = Path(temporary) / name, made / "server.log"
        export_checkpoint(RandomModel(config, dtype=_DTYPE), folder, ExportOptions(shard_bytes=SHARD_BYTES))
        num_bytes, rate = sum(path.stat().st_size for path in folder.iterdir()), disk_rate(folder)
        print(
            f"\n{name}: {config.n_layers} of its layers, {num_bytes / 1e9:.2f} GB; the disk reads "
            f"{rate / 1e6:.0f} MB/s",
            flush=True,
        )
        starts = {number: start(folder, config, number, log) for number in numbers}
    sizes = footprint(config, _DTYPE)
    rows = [
        row(number, part, found, base, sizes)
        for number, each in starts.items()
        for (part, found), (_, base) in zip(each.processes, bases[number].processes, strict=True)
    ]
    bound = num_bytes / rate + START_SLACK
    print(*_lines(rows), sep="\n")
    for number, each in starts.items():
        alone, same = bases[number].seconds, each.tokens == starts[numbers[0]].tokens
        print(
            f"{number} workers: READY after {each.seconds:.1f} s, a tiny model after {alone:.1f} s; the "
            f"disk's time and 5 s: {bound:.1f} s: {_word(each.seconds - alone <= bound)}; tokens as with "
            f"{numbers[0]} workers: {_word(same)}",
            flush=True,
        )
    return {
        "layers": config.n_layers,
        "bytes": num_bytes,
        "disk_bytes_per_second": rate,
        "seconds": {number: each.seconds for number, each in starts.items()},
        "tiny_seconds": {number: bases[number].seconds for number in starts},
        "same_tokens": all(each.tokens == starts[numbers[0]].tokens for each in starts.values()),
        "processes": [asdict(each) for each in rows],
    }


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        f"{'workers':>7} {'process':<12} {'experts':>7} {'its MB':>8} {'read':>8} {'of disk':>8} "
        f"{'promised':>8} {'RSS':>8} {'PSS':>8} {'peak':>8}"
    )
    for each in rows:
        part, missed = each.part, [name for name, is_met in each.is_met.items() if not is_met]
        sizes = (part.stored_bytes, each.read, each.from_disk, part.kept_bytes, each.rss, each.pss, each.peak)
        columns = " ".join(f"{size / 1e6:>8.0f}" for size in sizes)
        note = f"  MISSED: {', '.join(missed)}" if missed else ""
        yield f"{each.workers:>7} {part.name:<12} {part.num_experts:>7} {columns}{note}"


def _word(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def run(args: argparse.Namespace, report: Report) -> None:
    numbers = [0, *args.workers]
    with tempfile.TemporaryDirectory(prefix="expertmesh-bench-", dir=args.folder) as made:
        tiny, config = Path(made) / "tiny", _tiny()
        export_checkpoint(RandomModel(config, dtype=_DTYPE), tiny)
        bases = {number: start(tiny, config, number, Path(made) / "server.log") for number in numbers}
        results = {}
        for name in args.models:
            cut = largest_cut(PUBLISHED / f"{name}.json", int(args.gigabytes * 1e9))
            results[name] = measure(name, cut, numbers, bases, Path(made))
    report.finish({"models": results})


def _tiny() -> ModelConfig:
    """Enough experts for each worker."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    settings = {"model_type": "mixtral", **sizes, "num_hidden_layers": 2, "vocab_size": 1024}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        return config_like(path)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments.loading().parse_args(argv)
    try:
        with reporting("loading", args.out, argv) as report:
            run(args, report)
    except RuntimeError as error:
        sys.exit(f"loading: {error}")


if __name__ == "__main__":
    main()
