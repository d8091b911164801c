"""How long a server takes until READY and what its processes keep in memory, beside another tree's.

    python -m benchmarks.start [--beside TREE] [--workers 0,2] [--rounds 5]

Servers of both trees start in turns. READY is measured from the start of the command, memory after a first
request, of all processes together: engine, fronts, workers and Ray. The other tree must be built where it is:
`python setup.py build_ext --inplace`.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.arguments import numbers
from benchmarks.load import Clients, prompt_of, request
from benchmarks.report import add_out_argument, reporting
from benchmarks.server_process import ROOT, serving

THIS, BESIDE = "this tree", "beside"
NEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Start:
    """Memory in bytes."""

    seconds: float
    rss: int
    pss: int
    processes: int


def start(tree: Path, checkpoint: Path | None, num_workers: int, log: Path) -> Start:
    """Of the demo model as that tree has it, unless another is named."""
    checkpoint = checkpoint or tree / "demo" / "checkpoint"
    started = time.perf_counter()
    with serving(checkpoint, [f"--workers={num_workers}"], log, tree=tree) as server:
        seconds = time.perf_counter() - started
        asyncio.run(_first_request(server.address))
        memory = server.memory()
        return Start(seconds, memory.rss, memory.pss, len(server.pids()))


async def _first_request(address: str) -> None:
    """Raises RuntimeError for one that is not answered."""
    clients = Clients(address, 1)
    try:
        result = await clients.run(request(prompt_of(0, 16), NEW_TOKENS))
    finally:
        await clients.close()
    if not result.is_complete:
        raise RuntimeError(f"the first request ended {result.code}")


def in_turns(
    trees: Mapping[str, Path], checkpoint: Path | None, num_workers: int, rounds: int
) -> dict[str, list[Start]]:
    """One start of each before the rounds, which fills the page cache. Another tree begins each round."""
    found: dict[str, list[Start]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder:
        log = Path(folder) / "log"
        for number in range(rounds + 1):
            for name in sorted(trees, reverse=bool(number % 2)):
                one = start(trees[name], checkpoint, num_workers, log)
                if number:
                    found[name].append(one)
    return found


def more_than(ours: Sequence[Start], theirs: Sequence[Start]) -> dict[str, list[float]]:
    """Round by round, what ours takes beyond theirs."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "seconds": [a.seconds - b.seconds for a, b in pairs],
        "rss": [a.rss - b.rss for a, b in pairs],
        "pss": [a.pss - b.pss for a, b in pairs],
    }


def _line(num_workers: int, name: str, found: Sequence[Start]) -> str:
    seconds, rss, pss, number = (
        statistics.median(values) for values in zip(*(asdict(each).values() for each in found), strict=True)
    )
    return (
        f"{num_workers} workers, {name}: READY after {seconds:.2f} s; {number:.0f} processes, "
        f"{pss / 2**20:.0f} MiB (PSS), {rss / 2**20:.0f} MiB (RSS)"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    trees = {THIS: ROOT} if args.beside is None else {THIS: ROOT, BESIDE: args.beside.resolve()}
    rows, more = [], []
    for number in args.workers:
        found = in_turns(trees, args.checkpoint, number, args.rounds)
        for name, starts in found.items():
            print(_line(number, name, starts), flush=True)
            rows.append({"workers": number, "tree": name, "starts": [asdict(each) for each in starts]})
        if BESIDE in found:
            more.append({"workers": number, **more_than(found[THIS], found[BESIDE])})
    return {"starts": rows, "more_than_beside": more}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, help="one that both trees can read; default: the demo of each"
    )
    parser.add_argument("--beside", type=Path, metavar="TREE")
    parser.add_argument("--workers", type=numbers, default=[0, 2])
    parser.add_argument("--rounds", type=int, default=5)
    add_out_argument(parser)
    args = parser.parse_args(argv)
    with reporting("start", args.out, argv) as report:
        report.finish(run(args))


if __name__ == "__main__":
    main()
