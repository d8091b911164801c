"""The engine of another tree of this project beside this one's: what a change costs, in one run.

    python -m benchmarks.side_by_side OTHER_TREE [--workers 2] [--replicas 1] [--rounds 30]

Both have workers of their own and take turns, batch by batch, so that a slow minute of the machine falls on
both. The other tree must be built where it is: `python setup.py build_ext --inplace`. It makes the
checkpoint, for an older tree cannot read a newer one's, and runs its own `side_by_side_engine.py`: where that
is too old to tell the prefill's time as well, copy this tree's and change what it imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.server_process import environment_of

_HERE = Path(__file__).parents[1]
_PROMPT_TOKENS, _NEW_TOKENS = 128, 48


class Tree:
    """A process with the engine of one tree."""

    def __init__(self, root: Path, checkpoint: Path, workers: int, replicas: int) -> None:
        command = [sys.executable, str(root / "benchmarks" / "side_by_side_engine.py")]
        numbers = [workers, replicas, _PROMPT_TOKENS, _NEW_TOKENS]
        self._process = subprocess.Popen(
            [*command, str(checkpoint), *map(str, numbers)],
            cwd=root,
            env=environment_of(root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It ends with its input."""
        self._process.communicate(timeout=120)

    def run(self, batch: int) -> tuple[float, list[float]]:
        """Seconds of the prefill of so many sequences, and of each decode step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{batch}\n")
        self._process.stdin.flush()
        prefill, steps = json.loads(self._process.stdout.readline())
        return prefill, steps


Times = dict[str, list[float]]


def compare(other: Tree, this: Tree, batch: int, rounds: int) -> tuple[Times, Times]:
    """Seconds of both, by what was timed; the first round warms up."""
    theirs: Times = {"prefill": [], "decode": []}
    ours: Times = {"prefill": [], "decode": []}
    for number in range(rounds + 1):
        pairs = [(other, theirs), (this, ours)]
        for tree, found in pairs if number % 2 else reversed(pairs):
            prefill, steps = tree.run(batch)
            if number:
                found["prefill"].append(prefill)
                found["decode"] += steps
    return theirs, ours


def initialise(tree: Path, checkpoint: Path) -> None:
    """A random model of the default sizes, made by a tree's own code."""
    command = [sys.executable, str(tree / "benchmarks" / "side_by_side_engine.py"), "init", str(checkpoint)]
    subprocess.run(command, cwd=tree, env=environment_of(tree), check=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a change costs: the engines of two trees in turns.")
    parser.add_argument("other", type=Path, help="the other tree, built")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args(argv)
    root = args.other.resolve()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        initialise(root, checkpoint)
        sizes = (checkpoint, args.workers, args.replicas)
        with Tree(root, *sizes) as other, Tree(_HERE, *sizes) as this:
            print(
                "what     batch  number  other ms  this ms  ratio of medians  of lower quartiles", flush=True
            )
            for batch in map(int, args.batches.split(",")):
                theirs, ours = compare(other, this, batch, args.rounds)
                for what in theirs:
                    print(_line(what, batch, theirs[what], ours[what]), flush=True)


def _line(what: str, batch: int, theirs: Sequence[float], ours: Sequence[float]) -> str:
    medians = [statistics.median(steps) for steps in (theirs, ours)]
    lower = [statistics.quantiles(steps, n=4)[0] for steps in (theirs, ours)]
    other, this = (1e3 * median for median in medians)
    ratios = f"{medians[1] / medians[0]:16.3f}  {lower[1] / lower[0]:17.3f}"
    return f"{what:7}  {batch:5}  {len(ours):6}  {other:8.2f}  {this:7.2f}  {ratios}"


if __name__ == "__main__":
    main()
