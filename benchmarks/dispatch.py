"""One dispatch to expert workers and back: over our transports, and over bare sockets. Prints the physics, a
table for people, and one JSON line.

Every worker gets a payload of rows and gives as many back. The workers are real ones, whose experts have one
hidden unit, so what is measured is the way. The peers of the bare ping-pong are processes that read the same
number of bytes from a TCP socket and write them back.
"""

import argparse
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import arguments
from benchmarks.physics import measure_machine
from benchmarks.report import reporting
from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.routes import Address, Routes
from expert_workers.placement.placement import Placement, Share, place
from expert_workers.transports.base import AnyTransport, Link
from expert_workers.transports.ray.fleet import FleetOptions, RayFleet, actor_name
from expert_workers.transports.ray.links import ActorName
from expert_workers.transports.ray.transport import RayTransport
from expert_workers.transports.stream.transport import StreamTransport
from expert_workers.wire import ExpertCall, ExpertReply, ReplyForm, validate_reply
from expert_workers.worker.expert_worker import WorkerSpec
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.config import ModelConfig
from moe_model.layers.router import Routing
from moe_model.machine import usable_cores
from moe_model.versions.expert_versions import Catalog, checkpoint_modules

WIDTH = 512
ROW_BYTES = 4 * WIDTH
N_EXPERTS = 8
SMALLEST = ModelConfig(d_model=WIDTH, n_layers=1, d_ff=1, n_experts=N_EXPERTS, top_k=1, vocab_size=8)
BARE = "bare tcp"
STREAM_UNIX, STREAM_TCP, RAY = "stream unix", "stream tcp", "ray"
POOL = f"pool, {STREAM_UNIX}"

START_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Way:
    """One transport to all workers: where each is, and a link to it."""

    transport: AnyTransport
    addresses: dict[int, Address]
    links: dict[int, Link]


@dataclass(frozen=True, slots=True)
class Result:
    """Microseconds of one dispatch to all workers; `num_bytes` go to each, and come back from each.
    `rounds` are the rounds' medians."""

    way: str
    workers: int
    num_bytes: int
    median_us: float
    p99_us: float
    rounds: tuple[float, ...]


def measure(work: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median and 99th percentile, in microseconds."""
    for _ in range(50):
        work()
    times = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        work()
        times.append(time.perf_counter() - started)
    times.sort()
    return 1e6 * statistics.median(times), 1e6 * times[int(0.99 * (len(times) - 1))]


def bounce(listener: socket.socket, num_bytes: int) -> None:
    """A bare peer: reads so many bytes and writes them back, until the other end closes."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(num_bytes))
    while read_all(connection, buffer):
        connection.sendall(buffer)


def read_all(connection: socket.socket, buffer: memoryview) -> bool:
    done = 0
    while done < len(buffer):
        num_read = connection.recv_into(buffer[done:] if done else buffer)
        if num_read == 0:
            return False
        done += num_read
    return True


@contextmanager
def bare_peers(num_workers: int, num_bytes: int) -> Iterator[Callable[[], None]]:
    """One bare ping-pong with every peer: all are sent to before any is read from."""
    with ExitStack() as stack:
        connections = []
        for _ in range(num_workers):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            peer = multiprocessing.get_context("fork").Process(target=bounce, args=(listener, num_bytes))
            peer.start()
            stack.callback(peer.join)
            connection = stack.enter_context(socket.create_connection(listener.getsockname()))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.append(connection)
        payload, answer = bytes(num_bytes), memoryview(bytearray(num_bytes))

        def dispatch() -> None:
            for connection in connections:
                connection.sendall(payload)
            for connection in connections:
                read_all(connection, answer)

        yield dispatch


def link_dispatch(way: Way, placement: Placement, num_bytes: int) -> Callable[[], None]:
    """Send to all, wait once, validate: what a pool asks of its links."""
    x_RD = np.ones((num_bytes // ROW_BYTES, WIDTH), np.float32)
    weights_P = np.ones(len(x_RD), np.float32)
    call_ids = iter(range(1, 1 << 60))
    # Each worker is asked for the first expert that it holds.
    segments = {rank: ((placement.experts_of(rank)[0][1], len(x_RD)),) for rank in way.links}

    plane = way.transport.plane()

    def dispatch() -> None:
        calls = {
            rank: ExpertCall(next(call_ids), 0, 0, part, None, weights_P, x_RD, "float32", ReplyForm.SUM)
            for rank, part in segments.items()
        }
        pendings = {rank: way.links[rank].send(call) for rank, call in calls.items()}
        plane.wait(list(pendings.values()), time.monotonic() + 10.0)
        for rank, pending in pendings.items():
            outcome = pending.outcome
            if not isinstance(outcome, ExpertReply):
                raise RuntimeError(outcome)
            validate_reply(rank, calls[rank], outcome)

    return dispatch


def pool_dispatch(pool: ExpertPool, num_workers: int, num_bytes: int) -> Callable[[], None]:
    """A layer's whole dispatch, from grouping to combining. Every row is for all workers."""
    num_tokens = num_bytes // ROW_BYTES
    x_TD = torch.ones(num_tokens, WIDTH)
    ids_TK = torch.arange(num_workers).expand(num_tokens, num_workers).contiguous()
    weights_TK = torch.full((num_tokens, num_workers), 1 / num_workers)
    routing = Routing(weights_TK, ids_TK, torch.zeros(num_tokens, N_EXPERTS))

    def dispatch() -> None:
        with torch.inference_mode():
            pool.forward(0, x_TD, routing)

    return dispatch


@contextmanager
def workers(checkpoint: Path, num_workers: int) -> Iterator[tuple[Placement, dict[str, Way]]]:
    """Real ones, as a coordinator starts them, and the ways to them; each has its share of the cores."""
    placement = place(
        [(0, expert) for expert in range(N_EXPERTS)], [Share(rank) for rank in range(num_workers)], 1
    )
    threads = max(1, usable_cores().number // num_workers)
    spec = WorkerSpec(0, str(checkpoint), num_threads=threads)
    namespace = f"dispatch-{num_workers}"
    fleet = RayFleet(FleetOptions(spec, namespace, StreamTransport()))
    try:
        for rank in range(num_workers):
            fleet.start(rank)
        for rank in range(num_workers):
            fleet.load(rank, checkpoint_modules(placement.experts_of(rank)), START_TIMEOUT)
        sockets = [fleet.endpoint(rank, START_TIMEOUT) for rank in range(num_workers)]
        actors = [ActorName(actor_name(rank), namespace) for rank in range(num_workers)]
        yield (
            placement,
            {
                STREAM_UNIX: _way(StreamTransport(), sockets),
                STREAM_TCP: _way(StreamTransport(use_unix=False), sockets),
                RAY: _way(RayTransport(), actors),
            },
        )
    finally:
        fleet.end(range(num_workers))
        fleet.close()


def _way(transport: AnyTransport, endpoints: Sequence[Hashable]) -> Way:
    addresses = {rank: Address(rank, 1, endpoint) for rank, endpoint in enumerate(endpoints)}
    links = {rank: transport.connect(rank, each, START_TIMEOUT) for rank, each in enumerate(endpoints)}
    return Way(transport, addresses, links)


def make_pool(way: Way, placement: Placement) -> ExpertPool:
    pool = ExpertPool(Catalog.of_checkpoint(SMALLEST), way.transport)
    for address in way.addresses.values():
        pool.connect(address, START_TIMEOUT)
    pool.publish(Routes(1, way.addresses, placement.holders))
    return pool


def run(
    checkpoint: Path, num_workers: int, sizes: Sequence[int], seconds: float, rounds: int
) -> list[Result]:
    """The ways take turns, as the machine's mood changes; a way's figure is the median of its rounds."""
    results = []
    with workers(checkpoint, num_workers) as (placement, ways), ExitStack() as stack:
        pools = {name: make_pool(way, placement) for name, way in ways.items()}
        for pool in pools.values():
            stack.callback(pool.close)
        for num_bytes in sizes:
            with bare_peers(num_workers, num_bytes) as bare:
                work = {BARE: bare}
                work |= {name: link_dispatch(way, placement, num_bytes) for name, way in ways.items()}
                for name, pool in pools.items():
                    work[f"pool, {name}"] = pool_dispatch(pool, num_workers, num_bytes)
                turns = [{name: measure(each, seconds) for name, each in work.items()} for _ in range(rounds)]
            for name in work:
                medians, p99s = zip(*(turn[name] for turn in turns), strict=True)
                median, p99 = statistics.median(medians), statistics.median(p99s)
                results.append(Result(name, num_workers, num_bytes, median, p99, medians))
                _print_result(results[-1], results)
    return results


def _print_result(result: Result, results: Sequence[Result]) -> None:
    size = next(name for name, num_bytes in arguments.SIZES.items() if num_bytes == result.num_bytes)
    bare = _of(results, BARE, result).median_us
    print(
        f"{result.workers:>8} {size:>8}  {result.way:<18} {result.median_us:>10.0f} {result.p99_us:>10.0f}"
        f" {result.median_us / bare:>8.2f}",
        flush=True,
    )


def _of(results: Sequence[Result], way: str, like: Result) -> Result:
    sizes = (like.workers, like.num_bytes)
    return next(r for r in results if r.way == way and (r.workers, r.num_bytes) == sizes)


def ratios(results: Sequence[Result]) -> list[dict[str, object]]:
    """Of medians; of the whole pool also round by round, each ratio of two figures of one round."""
    found: list[dict[str, object]] = []
    for bare in (result for result in results if result.way == BARE):
        unix, tcp, ray, pool = (_of(results, way, bare) for way in (STREAM_UNIX, STREAM_TCP, RAY, POOL))
        found.append(
            {
                "workers": bare.workers,
                "num_bytes": bare.num_bytes,
                "stream_unix_over_bare": unix.median_us / bare.median_us,
                "stream_tcp_over_bare": tcp.median_us / bare.median_us,
                "ray_over_stream": ray.median_us / unix.median_us,
                "pool_over_bare_rounds": [a / b for a, b in zip(pool.rounds, bare.rounds, strict=True)],
            }
        )
    return found


def run_all(args: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    machine = measure_machine(torch.float32)
    print(
        f"{usable_cores().number} cores for the coordinator and all workers; one reads "
        f"{machine.read_bytes_per_second / 1e9:.1f} GB/s: 1 MiB takes at least "
        f"{1e6 * (1 << 20) / machine.read_bytes_per_second:.0f} us each time it is touched"
    )
    print(f"{'workers':>8} {'payload':>8}  {'way':<18} {'median us':>10} {'p99 us':>10} {'/ bare':>8}")
    cluster = RayCluster.start_local()
    try:
        with tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder:
            checkpoint = Path(folder) / "smallest"
            initialise_checkpoint(checkpoint, SMALLEST)
            sizes = [arguments.SIZES[name] for name in args.sizes]
            results = [r for n in args.workers for r in run(checkpoint, n, sizes, args.seconds, args.rounds)]
    finally:
        cluster.close()
    return {
        "compute": f"experts of {SMALLEST.d_ff} hidden unit",
        "machine": asdict(machine),
        "results": [asdict(result) for result in results],
        "ratios": ratios(results),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments.dispatch().parse_args(argv)
    with reporting("dispatch", args.out, argv) as report:
        report.finish(run_all(args))


if __name__ == "__main__":
    main()
