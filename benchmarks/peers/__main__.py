"""Our engine beside llama.cpp and transformers, in one run, in turns: `python -m benchmarks.peers`.

Prints the physics, what is compared with what, a table for people, the ratios that were set as bars, and one
JSON line for machines.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import arguments
from benchmarks.peers import models, table
from benchmarks.peers.install import InstallError, peers_python
from benchmarks.peers.jobs import Load, MixtralSize
from benchmarks.peers.ours import fitted
from benchmarks.peers.process import PeerError, PeersEnvironment
from benchmarks.peers.rounds import measure_rounds
from benchmarks.peers.systems import Choice, Opened, opened
from benchmarks.peers.verdict import verdicts
from benchmarks.physics import decode_floor_seconds, measure_machine
from benchmarks.report import Report, reporting
from coordinator.config.engine import EngineConfig
from coordinator.server.compute import dtype_of
from coordinator.server.process import configure_process
from moe_model.checkpoint.reader import Checkpoint

# Of as many bytes as ours, and what users take to save some. bfloat16 comes with float16, which llama.cpp
# multiplies faster where the processor has no instructions for bfloat16.
LLAMA_TYPES = {"bfloat16": ["bf16", "f16", "q8_0"], "float32": ["f32", "q8_0"]}


def run(args: argparse.Namespace, python: Path, report: Report) -> None:
    """Raises PeerError."""
    loads = [Load(batch, args.prompt_tokens, args.new_tokens) for batch in args.batches]
    if args.prefill_tokens:
        loads.append(Load(1, args.prefill_tokens, 1))
    config = fitted(EngineConfig(dtype=args.dtype, num_threads=args.threads), loads)
    choice = Choice(args.systems, args.llama_types or LLAMA_TYPES[args.dtype], args.workers)
    configure_process(config)
    with tempfile.TemporaryDirectory(prefix="expertmesh-peers-") as made:
        folder = Path(made)
        checkpoint = models.our_checkpoint(folder / "ours", dtype_of(config))
        size = models.mixtral_like(checkpoint.config)
        facts = _physics(checkpoint, config, size, args.threads)
        environment = PeersEnvironment(python, args.threads, folder)
        models.write_peer_models(environment, folder, size, choice.llama_types)
        with opened(choice, checkpoint, config, environment, folder, size) as found:
            _print_peers(found)
            found.choose_ways(loads)
            measured = measure_rounds(found.systems, loads, args.rounds, found.failures)
    found_verdicts = list(verdicts(measured.timings))
    failed = [*table.failure_lines(measured), ""] if measured.failures else []
    print("", *table.lines(measured), "", *failed, *found_verdicts, sep="\n", flush=True)
    report.finish(
        {
            "dtype": args.dtype,
            "rounds": args.rounds,
            **facts,
            "versions": found.versions,
            "agreement": {name: asdict(value) for name, value in found.agreement.items()},
            "results": table.rows(measured),
            "failures": measured.failures,
            "verdicts": [asdict(one) for one in found_verdicts],
        }
    )


def _physics(
    checkpoint: Checkpoint, config: EngineConfig, size: MixtralSize, threads: int
) -> dict[str, object]:
    machine, dtype = measure_machine(dtype_of(config), num_threads=config.num_threads), config.dtype
    floor = decode_floor_seconds(checkpoint.config, dtype_of(config), machine)
    print(
        f"{threads} threads read {machine.read_bytes_per_second / 1e9:.1f} GB/s and multiply "
        f"{machine.flops_per_second / 1e9:.0f} GFLOP/s in {dtype}; one token of one "
        f"sequence reads every active weight once: at most {1 / floor:.0f} tokens/s"
    )
    print(*models.describe(checkpoint.config, size), sep="\n", end="\n\n", flush=True)
    return {"machine": asdict(machine), "decode_floor_tokens_per_second": 1 / floor, "mixtral": asdict(size)}


def _print_peers(found: Opened) -> None:
    for name, agreement in found.agreement.items():
        print(
            f"{name} ({found.versions[name]}): logits {agreement.logits_error:.2%} off transformers in "
            f"float32, {agreement.num_equal} of {agreement.num_tokens} greedy tokens the same"
        )
    print(flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments.peers().parse_args(argv)
    try:
        python = peers_python()
        with reporting("peers", args.out, argv) as report:
            run(args, python, report)
    except (InstallError, PeerError) as error:
        sys.exit(f"peers: {error}")


if __name__ == "__main__":
    main()
