"""What an expert worker holds and how long a server takes to be ready. python -m benchmarks.workers

Memory is the anonymous part of each worker's process (Linux): its heap, without code and shared pages. The
first row is a worker that holds one expert of one unit, that is, next to nothing.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import add_out_argument, reporting
from coordinator.config.engine import EngineConfig
from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from coordinator.config.workers import WorkersConfig
from coordinator.server.compute import dtype_of
from coordinator.server.main import open_server
from coordinator.server.process import configure_process
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.manifest import DTYPES
from moe_model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Row:
    """One worker of one server."""

    workers: int
    rank: int
    num_experts: int
    expert_bytes: int
    anonymous_bytes: int
    startup_seconds: float


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise OSError(f"process {pid} has no anonymous memory")


async def measure(checkpoint: Path, engine: EngineConfig, num_workers: int) -> list[Row]:
    config = ServeConfig(
        checkpoint=str(checkpoint),
        engine=engine,
        workers=WorkersConfig(num_workers=num_workers),
        addresses=Addresses("127.0.0.1:0", control=None, http=None),
    )
    async with open_server(config) as server:
        return [
            Row(
                num_workers,
                worker.rank,
                sum(map(len, worker.experts.values())),
                worker.num_bytes,
                anonymous_bytes(worker.pid),
                server.startup_seconds,
            )
            for worker in server.engine.workers().workers
        ]


def measure_all(engine: EngineConfig, numbers: Sequence[int]) -> list[Row]:
    print(
        f"{'workers':>8} {'rank':>5} {'experts':>8} {'expert MB':>10} {'process MB':>11} {'ready after':>12}"
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder:
        empty, path = Path(folder) / "one-expert", Path(folder) / "random"
        initialise_checkpoint(
            empty, ModelConfig(n_layers=1, n_experts=1, top_k=1, d_ff=1), dtype=dtype_of(engine)
        )
        initialise_checkpoint(path, ModelConfig(), dtype=dtype_of(engine))
        for checkpoint, num_workers in [(empty, 1), *((path, number) for number in numbers)]:
            for row in asyncio.run(measure(checkpoint, engine, num_workers)):
                rows.append(row)
                print(
                    f"{row.workers:>8} {row.rank:>5} {row.num_experts:>8} {row.expert_bytes / 1e6:>10.1f} "
                    f"{row.anonymous_bytes / 1e6:>11.1f} {row.startup_seconds:>10.1f} s",
                    flush=True,
                )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memory of expert workers, and time to be ready.")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 5])
    add_out_argument(parser)
    args = parser.parse_args(argv)
    engine = EngineConfig(dtype=args.dtype)
    configure_process(engine)
    with reporting("workers", args.out, argv) as report:
        rows = measure_all(engine, args.workers)
        report.finish({"dtype": args.dtype, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
