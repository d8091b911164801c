"""Our engine beside llama.cpp and transformers, in one run, in turns: `python -m benchmarks.peers`.

All run the same weights, of one model after the other. Prints the processor and its physics, whether all
compute the same, a table for people, the ratios that were set as bars, and one JSON line for machines.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import arguments
from benchmarks.manifest import processor_line
from benchmarks.peers import models, table
from benchmarks.peers.install import InstallError, peers_python
from benchmarks.peers.jobs import Load
from benchmarks.peers.ours import fitted
from benchmarks.peers.process import PeerError, PeersEnvironment
from benchmarks.peers.rounds import measure_rounds
from benchmarks.peers.systems import Choice, Opened, opened
from benchmarks.peers.verdict import LLAMA, verdicts
from benchmarks.physics import Machine, decode_floor_seconds, measure_machine
from benchmarks.report import Report, reporting
from coordinator.config.engine import EngineConfig
from coordinator.server.compute import dtype_of
from coordinator.server.process import configure_process
from moe_model.families import family_of

# Of as many bytes as ours, and what users take to save some. bfloat16 comes with float16, which llama.cpp
# multiplies faster where the processor has no instructions for bfloat16.
LLAMA_TYPES = {"bfloat16": ["bf16", "f16", "q8_0", "q4_0"], "float32": ["f32", "q8_0", "q4_0"]}


def run(args: argparse.Namespace, python: Path, report: Report) -> None:
    """Raises PeerError."""
    loads = [Load(batch, args.prompt_tokens, args.new_tokens) for batch in args.batches]
    if args.prefill_tokens:
        loads.append(Load(1, args.prefill_tokens, 1))
    config = fitted(EngineConfig(dtype=args.dtype, num_threads=args.threads), loads)
    configure_process(config)
    machine = measure_machine(dtype_of(config), num_threads=config.num_threads)
    print(
        f"{processor_line(report.manifest)}; {args.threads} threads read "
        f"{machine.read_bytes_per_second / 1e9:.1f} GB/s and multiply {machine.flops_per_second / 1e9:.0f} "
        f"GFLOP/s in {config.dtype}",
        flush=True,
    )
    results = {name: _measure(name, args, python, config, loads, machine) for name in args.models}
    report.finish({"dtype": args.dtype, "rounds": args.rounds, "machine": asdict(machine), "models": results})


def _measure(
    name: str,
    args: argparse.Namespace,
    python: Path,
    config: EngineConfig,
    loads: Sequence[Load],
    machine: Machine,
) -> dict[str, object]:
    """One model in all systems, in turns."""
    choice = Choice(args.systems, args.llama_types or LLAMA_TYPES[args.dtype], args.workers)
    with tempfile.TemporaryDirectory(prefix="expertmesh-peers-") as made:
        folder = Path(made)
        checkpoint = models.write_model(name, folder / name)
        floor = decode_floor_seconds(checkpoint.config, dtype_of(config), machine)
        print(f"\n{models.describe(name, checkpoint)}")
        print(f"one token of one sequence reads every active weight once: at most {1 / floor:.0f} tokens/s")
        environment = PeersEnvironment(python, args.threads, folder)
        if LLAMA in choice.names:
            models.write_llama_files(environment, checkpoint.path, folder, choice.llama_types)
        with opened(choice, checkpoint, config, environment, folder) as found:
            _print_agreement(found)
            found.choose_ways(loads)
            measured = measure_rounds(found.systems, loads, args.rounds, found.failures)
    found_verdicts = list(verdicts(measured.timings))
    failed = [*table.failure_lines(measured), ""] if measured.failures else []
    lines = [f"{name}, {one}" for one in found_verdicts]
    print("", *table.lines(measured), "", *failed, *lines, sep="\n", flush=True)
    return {
        "num_parameters": family_of(checkpoint.config).num_params(checkpoint.config),
        "decode_floor_tokens_per_second": 1 / floor,
        "versions": found.versions,
        "agreement": {system: asdict(value) for system, value in found.agreement.items()},
        "results": table.rows(measured),
        "failures": measured.failures,
        "verdicts": [asdict(one) for one in found_verdicts],
    }


def _print_agreement(found: Opened) -> None:
    versions = found.versions
    for name, agreement in found.agreement.items():
        version = f" ({versions[name]})" if name in versions else ""
        print(
            f"{name}{version}: logits {agreement.logits_error:.2%} off transformers in float32, "
            f"{agreement.num_equal} of {agreement.num_tokens} greedy tokens the same"
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
