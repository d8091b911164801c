"""What gRPC leaves of the engine's rate, and what a client waits for. `expertmesh bench serve`.

In each round first the engine alone, then a server under the same requests from as many closed-loop clients
(each sends its next request when the last has ended), then under Poisson arrivals (open loop). Requests are
token ids, greedy, all of one length. Clients and server share this machine's cores; the table says who used
how many of them.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks import arguments
from benchmarks.checkpoints import opened
from benchmarks.latency import spread
from benchmarks.physics import decode_floor_seconds, measure_machine
from benchmarks.report import reporting
from benchmarks.serve_rounds import Load, Plan, Round, run_round
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.compute import dtype_of
from coordinator.server.process import configure_process
from expertmesh.commands.options import options_of
from moe_model.checkpoint.reader import Checkpoint

Row = Mapping[str, Any]
# Width of the two columns of each.
WAITS = {"first_token_seconds": 8, "per_token_seconds": 7, "gap_seconds": 7}
COLUMNS = (
    f"{'':>40} {'first token, ms':>17} {'per token, ms':>15} {'gap, ms':>15} {'cores of':>14}\n"
    f"{'workers':>7} {'load':>14} {'tok/s':>7} {'of engine':>9} {'p50':>8} {'p99':>8} {'p50':>7} {'p99':>7}"
    f" {'p50':>7} {'p99':>7} {'server':>6} {'clients':>7}"
)


def alone_row(workers: int, batch: int, rounds: Sequence[Round]) -> dict[str, object]:
    found = [each.alone[batch] for each in rounds]
    return {
        "workers": workers,
        "batch": batch,
        "tokens_per_second": statistics.median(each.tokens_per_second for each in found),
        "decode_tokens_per_second": statistics.median(each.decode_tokens_per_second for each in found),
    }


def served_row(workers: int, load: Load, rounds: Sequence[Round]) -> dict[str, object]:
    """Rates and shares are medians of the rounds, a share is of two of one; waits are of all requests."""
    found = [each.served[load] for each in rounds]
    timings = [timing for each in found for timing in each.timings]
    num_messages = sum(len(timing.gaps) + 1 for timing in timings)
    waits = {
        "first_token_seconds": spread(timing.first_token for timing in timings),
        "per_token_seconds": spread(timing.per_token for timing in timings),
        "gap_seconds": spread(gap for timing in timings for gap in timing.gaps),
        "request_seconds": spread(timing.total for timing in timings),
    }
    return {
        "workers": workers,
        **asdict(load),
        "tokens_per_second": statistics.median(each.tokens_per_second for each in found),
        **_shares(load, rounds),
        **{name: asdict(wait) for name, wait in waits.items()},
        "tokens_per_message": sum(timing.num_tokens for timing in timings) / max(1, num_messages),
        "complete": len(timings),
        "refused": sum(each.num_refused for each in found),
        "server_cores": statistics.median(each.server_cores for each in found),
        "client_cores": statistics.median(each.client_cores for each in found),
    }


def _shares(load: Load, rounds: Sequence[Round]) -> dict[str, object]:
    """Of what the engine alone makes of the same work, and of its rate when no prompt is computed."""
    if not load.clients:
        return {}
    pairs = [(each.served[load].tokens_per_second, each.alone[load.clients]) for each in rounds]
    shares = [rate / alone.tokens_per_second for rate, alone in pairs]
    return {
        "share_of_engine": statistics.median(shares),
        "share_of_engine_rounds": shares,
        "share_of_engine_decode": statistics.median(
            rate / alone.decode_tokens_per_second for rate, alone in pairs
        ),
    }


def run(checkpoint: Checkpoint, config: EngineConfig, args: argparse.Namespace) -> dict[str, object]:
    machine = measure_machine(dtype_of(config), num_threads=config.num_threads)
    floor = decode_floor_seconds(checkpoint.config, dtype_of(config), machine)
    print(
        f"{machine.num_threads} threads read {machine.read_bytes_per_second / 1e9:.1f} GB/s: one token "
        f"of one sequence in {args.dtype} takes at least {1e3 * floor:.2f} ms: at most "
        f"{1 / floor:.0f} tokens/s for its client\n\n{COLUMNS}",
        flush=True,
    )
    vocab_size = checkpoint.config.vocab_size
    plan = Plan(args.prompt_tokens, args.new_tokens, args.requests, args.seconds, vocab_size)
    loads = [*(Load(clients=number) for number in args.clients), *(Load(rate=rate) for rate in args.rates)]
    alone: list[Row] = []
    served: list[Row] = []
    for number in args.workers:
        workers = WorkersConfig(num_workers=number)
        seeds = range(args.seed, args.seed + args.rounds)
        rounds = [run_round(checkpoint, config, workers, plan, loads, seed) for seed in seeds]
        alone += [_printed(alone_row(number, batch, rounds)) for batch in args.clients]
        served += [_printed(served_row(number, load, rounds)) for load in loads]
    return {
        "dtype": args.dtype,
        "machine": asdict(machine),
        "decode_floor_tokens_per_second": 1 / floor,
        "load": asdict(plan),
        "rounds": args.rounds,
        "seed": args.seed,
        "engine": alone,
        "served": served,
    }


def _printed(row: Row) -> Row:
    print(_alone_line(row) if "batch" in row else _served_line(row), flush=True)
    return row


def _alone_line(row: Row) -> str:
    name = f"engine, {row['batch']}"
    return (
        f"{row['workers']:>7} {name:>14} {row['tokens_per_second']:>7.0f}"
        f"   decode steps alone: {row['decode_tokens_per_second']:.0f}"
    )


def _served_line(row: Row) -> str:
    load = str(Load(row["clients"], row["rate"]))
    share = f"{row['share_of_engine']:.2f}" if "share_of_engine" in row else ""
    waits = " ".join(
        f"{1e3 * row[name][point]:>{width}.1f}" for name, width in WAITS.items() for point in ("p50", "p99")
    )
    shares = row.get("share_of_engine_rounds", ())
    rounds = f"  rounds {min(shares):.2f} to {max(shares):.2f}" if len(shares) > 1 else ""
    refused = f"  {row['refused']} of {row['refused'] + row['complete']} refused" if row["refused"] else ""
    return (
        f"{row['workers']:>7} {load:>14} {row['tokens_per_second']:>7.0f} {share:>9} {waits}"
        f" {row['server_cores']:>6.2f} {row['client_cores']:>7.2f}{rounds}{refused}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments.serve().parse_args(argv)
    given = options_of(args, arguments.ServeBenchmark).engine
    config = replace(given, max_num_seqs=max(given.max_num_seqs, *args.clients))
    configure_process(config)
    with (
        reporting("serve", args.out, argv) as report,
        opened(args.checkpoint, dtype_of(config)) as checkpoint,
    ):
        report.finish(run(checkpoint, config, args))


if __name__ == "__main__":
    main()
