"""The service under stress, from outside: many streams, readers that never read, overload, shared prefixes.

    python -m benchmarks.service streams|readers|overload|prefix

Each prints what it found for people and one JSON line for machines.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.latency import percentile
from benchmarks.light_clients import Trace
from benchmarks.load import (
    TIMEOUT,
    Clients,
    LightRuns,
    Result,
    message_of,
    prompt_of,
    request,
    result_of,
    without_collections,
)
from benchmarks.report import add_out_argument, reporting
from benchmarks.server_process import ServerProcess, serving
from expertmesh.v1 import generation_pb2 as pb

DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
R = TypeVar("R")
# As many different prompts as there are (`prompt_of`). One that comes again is computed again: of 16 tokens
# no whole block is before the last.
NUM_MESSAGES = 4092
# Of many streams at once.
NUM_LOOKED_AT = 20
Scenario = Callable[[ServerProcess, argparse.Namespace], Awaitable[dict[str, object]]]


async def streams(server: ServerProcess, args: argparse.Namespace) -> dict[str, object]:
    """Opens many streams at once: each is admitted or refused, and what was admitted is right."""
    alone = Clients(server.address, 1)
    kinds = [prompt_of(i, 16) for i in range(16)]
    expected = [(await alone.run(request(prompt, args.new_tokens))).token_ids for prompt in kinds]
    idle = server.rss_bytes()
    requests = [request(kinds[i % 16], args.new_tokens) for i in range(args.streams)]
    rounds = [await _at_once(server.address, requests) for _ in range(args.rounds)]
    after = await alone.run(request(kinds[0], args.new_tokens))
    await alone.close()
    results = [result for found in rounds for result in found]
    decisions = [max(result.decided for result in found) for found in rounds]
    complete = [result for result in results if result.is_complete]
    return {
        "streams": args.streams,
        "rounds": args.rounds,
        "complete": len(complete),
        "refused": sum(r.code == "RESOURCE_EXHAUSTED" and r.has_retry_info is not False for r in results),
        "other": sorted({r.code for r in results} - {"OK", "RESOURCE_EXHAUSTED"}),
        "wrong": sum(
            result.is_complete and result.token_ids != expected[i % 16]
            for found in rounds
            for i, result in enumerate(found)
        ),
        "decision_seconds": decisions,
        "slowest_decision_seconds": statistics.median(decisions),
        "slowest_refusal_seconds": max((r.decided for r in results if not r.is_complete), default=0.0),
        "slowest_total_seconds": max(r.total for r in results),
        "idle_rss_mib": idle >> 20,
        "peak_rss_mib": server.peak_rss_bytes() >> 20,
        "open_files": server.num_fds(),
        "correct_afterwards": after.token_ids == expected[0],
    }


async def _at_once(address: str, requests: Sequence[pb.GenerateRequest]) -> list[Result]:
    """The last ones by clients that look at what a refusal says."""
    messages = [each.SerializeToString() for each in requests[:-NUM_LOOKED_AT]]
    light, full = LightRuns(address, len(messages)), Clients(address, NUM_LOOKED_AT)
    for clients in (light, full):
        await clients.connect()
    try:
        async with asyncio.timeout(TIMEOUT):
            with without_collections():
                traces, results = await asyncio.gather(
                    asyncio.gather(*map(light.run, messages)),
                    asyncio.gather(*map(full.run, requests[-NUM_LOOKED_AT:])),
                )
    finally:
        for clients in (light, full):
            await clients.close()
    return [*map(result_of, traces), *results]


async def readers(server: ServerProcess, args: argparse.Namespace) -> dict[str, object]:
    """The same load twice a round: its background reads what it is sent, and then it never does."""
    rates: dict[str, list[float]] = {"reading": [], "never_reading": []}
    memory = {}
    for _ in range(args.rounds):
        for name, found in rates.items():
            found.append(await _beside(server, args, reading=name == "reading"))
            memory[name] = server.peak_rss_bytes() >> 20
    lost = [1 - never / reads for reads, never in zip(*rates.values(), strict=True)]
    return {
        "background": args.readers,
        "tokens_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "slowdown": statistics.median(lost),
        "slowdown_rounds": lost,
        "peak_rss_mib": memory,
    }


async def _beside(server: ServerProcess, args: argparse.Namespace, *, reading: bool) -> float:
    """Tokens per second of 16 closed-loop clients beside the background."""
    background = Clients(server.address, args.readers)
    await background.connect()
    tasks: list[asyncio.Task[Result]] = []
    for index in range(args.readers):
        message = request(prompt_of(1000 + index, 16), 450)
        if reading:
            tasks.append(asyncio.ensure_future(background.run(message)))
        else:
            background.leave_unread(message)
    await background.all_begun()
    clients = Clients(server.address, 16)

    async def run(index: int) -> Result:
        return await clients.run(request(prompt_of(index, 16), args.new_tokens))

    results, seconds = await _closed_loop(run, 16, args.seconds)
    await clients.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await background.close()
    return _num_tokens(results) / seconds


async def _closed_loop(
    run: Callable[[int], Awaitable[R]], num_clients: int, seconds: float
) -> tuple[list[R], float]:
    """Each client runs one request, by its index, after the other; and the seconds until all have ended."""
    started = time.perf_counter()
    found: list[R] = []

    async def client(number: int) -> None:
        turn = 0
        while time.perf_counter() - started < seconds:
            turn += 1
            found.append(await run(turn * num_clients + number))

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    return found, time.perf_counter() - started


def _num_tokens(results: Iterable[Result]) -> int:
    return sum(len(result.token_ids) for result in results if result.is_complete)


async def overload(server: ServerProcess, args: argparse.Namespace) -> dict[str, object]:
    """Finds the peak with closed-loop clients, then sends three times as much, whatever comes back."""
    clients = LightRuns(server.address, 400)
    await clients.connect()
    await _peak(clients, args.warm_up, args.new_tokens)
    quiet = await _first_tokens(clients, args.new_tokens)
    peak = await _peak(clients, args.seconds / 3, args.new_tokens)
    traces = await _open_loop(clients, 3 * peak / args.new_tokens, args.seconds, args.new_tokens)
    started, ended = traces[0].due, traces[0].due + args.seconds
    recovery = await _recovery(clients, quiet, ended, args.new_tokens)
    await clients.close()
    results = list(map(result_of, traces))
    goodput = _num_tokens(r for r in results if started <= r.sent_at + r.total <= ended) / args.seconds
    last = max(r.sent_at + r.total for r in results)
    complete = [r.first_token for r in results if r.is_complete]
    refused = [r.decided for r in results if r.code == "RESOURCE_EXHAUSTED"]
    return {
        "seconds": args.seconds,
        "peak_tokens_per_second": peak,
        "offered_tokens_per_second": 3 * peak,
        "goodput_tokens_per_second": goodput,
        "goodput_over_peak": goodput / peak,
        "sent": len(results),
        "complete": len(complete),
        "refused": len(refused),
        "other": sorted({r.code for r in results} - {"OK", "RESOURCE_EXHAUSTED"}),
        "refusal_p50_seconds": percentile(refused, 50),
        "refusal_p99_seconds": percentile(refused, 99),
        "first_token_p50_seconds": percentile(complete, 50),
        "first_token_p99_seconds": percentile(complete, 99),
        "drained_seconds": max(0.0, last - ended),
        "recovery_seconds": recovery,
        "peak_rss_mib": server.peak_rss_bytes() >> 20,
    }


async def _peak(clients: LightRuns, seconds: float, new_tokens: int) -> float:
    """Tokens per second of complete requests of 64 clients."""
    messages = [message_of(index, new_tokens) for index in range(NUM_MESSAGES)]
    with without_collections():
        traces, taken = await _closed_loop(
            lambda index: clients.run(messages[index % NUM_MESSAGES]), 64, seconds
        )
    return _num_tokens(map(result_of, traces)) / taken


async def _open_loop(
    clients: LightRuns, requests_per_second: float, seconds: float, new_tokens: int
) -> list[Trace]:
    messages = [message_of(index, new_tokens) for index in range(int(requests_per_second * seconds) + 1)]
    tasks: list[asyncio.Task[Trace]] = []
    with without_collections():
        started = time.perf_counter()
        while (now := time.perf_counter() - started) < seconds:
            while len(tasks) < now * requests_per_second:
                tasks.append(asyncio.ensure_future(clients.run(messages[len(tasks)])))
            await asyncio.sleep(0.005)
        return await asyncio.gather(*tasks)


async def _first_tokens(clients: LightRuns, new_tokens: int) -> float:
    """The median time to the first token of a request that is alone."""
    runs = [result_of(await clients.run(message_of(i, new_tokens))) for i in range(9)]
    return statistics.median(r.first_token for r in runs)


async def _recovery(clients: LightRuns, quiet: float, ended: float, new_tokens: int) -> float:
    """Seconds after the load's end until a first token comes as fast as before, twice over at most."""
    turn = 0
    while time.perf_counter() - ended < 60:
        turn += 1
        result = result_of(await clients.run(message_of(500_000 + turn, new_tokens)))
        if result.is_complete and result.first_token <= max(2 * quiet, quiet + 0.02):
            return max(0.0, result.sent_at - ended)
    return float("inf")


async def prefix(server: ServerProcess, args: argparse.Namespace) -> dict[str, object]:
    """Time to the first token of 400 tokens and 16 more: a new prefix each time, then one that is known."""
    clients = Clients(server.address, 1)
    common = prompt_of(77, 400)
    await clients.run(request([*common, *prompt_of(78, 16)], 1))
    cold, warm = [], []
    for turn in range(args.repeats):
        fresh = [*prompt_of(1000 + turn, 400), *prompt_of(turn, 16)]
        cold.append(await clients.run(request(fresh, 1)))
        warm.append(await clients.run(request([*common, *prompt_of(2000 + turn, 16)], 1)))
    await clients.close()
    cold_seconds = statistics.median(r.first_token for r in cold)
    warm_seconds = statistics.median(r.first_token for r in warm)
    return {
        "cold_seconds": cold_seconds,
        "warm_seconds": warm_seconds,
        "ratio": cold_seconds / warm_seconds,
        "cached_tokens": [statistics.median(r.cached for r in runs) for runs in (cold, warm)],
    }


@dataclass(frozen=True, slots=True)
class Benchmark:
    run: Scenario
    serve_arguments: tuple[str, ...] = ()


BENCHMARKS = {
    "streams": Benchmark(streams),
    "readers": Benchmark(readers, ("--max-queue-requests", "512", "--max-batch", "256")),
    "overload": Benchmark(overload),
    "prefix": Benchmark(prefix),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenario", choices=BENCHMARKS)
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=1, help="of streams and readers")
    parser.add_argument("--repeats", type=int, default=15, help="of prefix")
    add_out_argument(parser)
    args = parser.parse_args(argv)
    chosen = BENCHMARKS[args.scenario]
    with (
        reporting(f"service.{args.scenario}", args.out, argv) as report,
        tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder,
    ):
        arguments = ["--workers", str(args.workers), *chosen.serve_arguments]
        with serving(args.checkpoint, arguments, Path(folder) / "log") as server:
            found = asyncio.run(_run(chosen.run, server, args))
        for name, value in found.items():
            print(f"{name:<32} {value}")
        report.finish(found)


async def _run(scenario: Scenario, server: ServerProcess, args: argparse.Namespace) -> dict[str, object]:
    return await scenario(server, args)


if __name__ == "__main__":
    main()
