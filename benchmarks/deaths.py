"""What callers see when a process of the server is killed under their streams, and for how long.

    python -m benchmarks.deaths engine [--workers 0,2] [--rounds 3]
    python -m benchmarks.deaths front [--rounds 3]

Each round has a server of its own, streams on a connection each, and one kill -9 when all have begun. Of the
engine: when every stream has ended, and when a request is answered again. Of one of two fronts: how many
streams of the other one are lost, and how many have other tokens than before.
"""

import argparse
import asyncio
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import process_tree
from benchmarks.arguments import numbers
from benchmarks.light_clients import LightClients, Trace
from benchmarks.load import prompt_of, request
from benchmarks.report import add_out_argument, reporting
from benchmarks.server_process import ServerProcess, serving
from benchmarks.service import DEMO
from expertmesh.v1 import generation_pb2 as pb

PROMPT_TOKENS, SHORT = 16, 4
PATIENCE = 60.0
POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class EngineDeath:
    """Seconds since the kill: until the last stream had ended, until a short request was answered. `codes`:
    how the streams ended; `is_correct`: the answer is that of before."""

    ended_seconds: float
    ready_seconds: float
    codes: dict[str, int]
    is_correct: bool


@dataclass(frozen=True, slots=True)
class FrontDeath:
    """Of streams: at the killed front, and of the other's those that did not end well or not as expected."""

    killed: int
    lost: int
    changed: int


async def engine_death(server: ServerProcess, num_streams: int, new_tokens: int) -> EngineDeath:
    messages, (short,) = _messages(num_streams, new_tokens), _messages(1, SHORT)
    async with _connected(server.address, num_streams + 1) as clients:
        before = await _answered(clients, num_streams, short)
        async with _begun(clients, messages) as all_ended:
            engine = server.engine_pid()
            killed_at = time.perf_counter()
            os.kill(engine, signal.SIGKILL)
            ready = asyncio.ensure_future(_answered(clients, num_streams, short))
            async with asyncio.timeout(PATIENCE):
                traces = await all_ended
                after = await ready
    codes = dict(Counter(trace.code for trace in traces))
    if codes.get("OK"):
        raise RuntimeError(f"{codes['OK']} streams had ended before the engine did")
    ended = max(trace.ended for trace in traces) - killed_at
    return EngineDeath(ended, after.ended - killed_at, codes, tokens(after) == tokens(before))


async def _answered(clients: LightClients, client: int, message: bytes) -> Trace:
    """The first request that ends well; the next is sent when one was refused."""
    while (trace := await clients.send(client, message)).code != "OK":
        await asyncio.sleep(POLL_SECONDS)
    return trace


async def front_death(server: ServerProcess, num_streams: int, new_tokens: int) -> FrontDeath:
    """Kills the front with fewer connections, which has at least one."""
    messages = _messages(num_streams, new_tokens)
    async with _connected(server.address, num_streams) as clients:
        expected = [tokens(trace) for trace in await _all(clients, messages)]
        async with _begun(clients, messages) as all_ended:
            port = int(server.address.rpartition(":")[2])
            fronts = {pid: process_tree.num_connections(pid, port) for pid in server.front_pids()}
            if len(fronts) != 2 or 0 in fronts.values() or sum(fronts.values()) != num_streams:
                raise RuntimeError(f"{num_streams} connections are spread as {sorted(fronts.values())}")
            killed = min(fronts, key=fronts.__getitem__)
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE):
                traces = await all_ended
    return judged(traces, expected, fronts[killed])


def judged(traces: Sequence[Trace], expected: Sequence[list[int]], num_killed: int) -> FrontDeath:
    """As many streams as the killed front had must end; each more is one of the other's that was lost."""
    lost = sum(trace.code != "OK" for trace in traces) - num_killed
    if lost < 0:
        raise RuntimeError(f"only {num_killed + lost} of {num_killed} streams ended with their front")
    changed = sum(
        trace.code == "OK" and tokens(trace) != wanted for trace, wanted in zip(traces, expected, strict=True)
    )
    return FrontDeath(num_killed, lost, changed)


def tokens(trace: Trace) -> list[int]:
    events = (pb.GenerateStreamResponse.FromString(data) for _, data in trace.messages)
    return [token for event in events for token in event.delta.token_ids]


def _messages(num_streams: int, new_tokens: int) -> list[bytes]:
    prompts = (prompt_of(index, PROMPT_TOKENS) for index in range(num_streams))
    return [request(prompt, new_tokens).SerializeToString() for prompt in prompts]


async def _all(clients: LightClients, messages: Sequence[bytes]) -> list[Trace]:
    return await asyncio.gather(*(clients.send(index, message) for index, message in enumerate(messages)))


@asynccontextmanager
async def _connected(address: str, num_clients: int) -> AsyncIterator[LightClients]:
    clients = LightClients(address, num_clients)
    await clients.connect()
    try:
        yield clients
    finally:
        await clients.close()


@asynccontextmanager
async def _begun(
    clients: LightClients, messages: Sequence[bytes]
) -> AsyncIterator["asyncio.Future[list[Trace]]"]:
    """Streams that all have begun when the block does, and what becomes of them."""
    traces = [Trace(time.perf_counter()) for _ in messages]
    all_ended = asyncio.ensure_future(_followed(clients, messages, traces))
    try:
        async with asyncio.timeout(PATIENCE):
            while not all(trace.messages for trace in traces):
                if any(trace.ended for trace in traces):
                    raise RuntimeError("some streams ended before all of them had begun")
                await asyncio.sleep(POLL_SECONDS)
        yield all_ended
    finally:
        all_ended.cancel()
        await asyncio.gather(all_ended, return_exceptions=True)


async def _followed(clients: LightClients, messages: Sequence[bytes], traces: list[Trace]) -> list[Trace]:
    each = enumerate(zip(messages, traces, strict=True))
    await asyncio.gather(*(clients.follow(index, message, trace) for index, (message, trace) in each))
    return traces


def measure_engine(args: argparse.Namespace, log: Path) -> dict[str, object]:
    rows = []
    for number in args.workers:
        found = []
        for _ in range(args.rounds):
            with serving(args.checkpoint, [f"--workers={number}"], log) as server:
                found.append(asyncio.run(engine_death(server, args.streams, args.new_tokens)))
        codes = sum((Counter(each.codes) for each in found), Counter[str]())
        ended, ready = (
            [getattr(each, name) for each in found] for name in ("ended_seconds", "ready_seconds")
        )
        wrong = sum(not each.is_correct for each in found)
        print(
            f"{number} workers: {args.streams} streams ended after {statistics.median(ended):.2f} s "
            f"({', '.join(f'{count} {code}' for code, count in codes.items())}), answers again after "
            f"{statistics.median(ready):.2f} s, {wrong} of {args.rounds} wrong",
            flush=True,
        )
        rows.append(
            {
                "workers": number,
                "ended_seconds": ended,
                "ready_seconds": ready,
                "codes": codes,
                "wrong": wrong,
            }
        )
    return {"streams": args.streams, "deaths": rows}


def measure_front(args: argparse.Namespace, log: Path) -> dict[str, object]:
    found = []
    for _ in range(args.rounds):
        with serving(args.checkpoint, ["--workers=0", "--fronts=2"], log) as server:
            found.append(asyncio.run(front_death(server, args.streams, args.new_tokens)))
            one = found[-1]
            print(
                f"{one.killed} of {args.streams} streams ended with their front; of the other's {one.lost} "
                f"were lost and {one.changed} changed",
                flush=True,
            )
    return {
        "streams": args.streams,
        "killed": [each.killed for each in found],
        "lost": [each.lost for each in found],
        "changed": [each.changed for each in found],
    }


MEASURES = {"engine": measure_engine, "front": measure_front}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("victim", choices=MEASURES)
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--workers", type=numbers, default=[0, 2], help="beside the engine that is killed")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=450)
    parser.add_argument("--rounds", type=int, default=3)
    add_out_argument(parser)
    args = parser.parse_args(argv)
    with (
        reporting(f"deaths.{args.victim}", args.out, argv) as report,
        tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder,
    ):
        report.finish(MEASURES[args.victim](args, Path(folder) / "log"))


if __name__ == "__main__":
    main()
