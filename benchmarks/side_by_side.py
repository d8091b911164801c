"""The engine of another tree of this project beside this one's: what a change costs, in one run.

    python -m benchmarks.side_by_side OTHER_TREE [--workers 2] [--replicas 1] [--rounds 30]

Both have workers of their own and take turns, batch by batch, so that a slow minute of the machine falls on
both. The other tree must be built where it is: `python setup.py build_ext --inplace`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.config import ModelConfig

_HERE = Path(__file__).parents[1]
_PROMPT_TOKENS, _NEW_TOKENS = 16, 48


class Tree:
    """A process with the engine of one tree."""

    def __init__(self, root: Path, checkpoint: Path, workers: int, replicas: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("side_by_side_engine.py"))]
        numbers = [workers, replicas, _PROMPT_TOKENS, _NEW_TOKENS]
        self._process = subprocess.Popen(
            [*command, str(checkpoint), *map(str, numbers)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
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

    def steps(self, batch: int) -> list[float]:
        """Seconds of each decode step of so many sequences."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{batch}\n")
        self._process.stdin.flush()
        seconds: list[float] = json.loads(self._process.stdout.readline())
        return seconds


def compare(other: Tree, this: Tree, batch: int, rounds: int) -> tuple[list[float], list[float]]:
    """All steps of both; the first round warms up."""
    theirs: list[float] = []
    ours: list[float] = []
    for number in range(rounds + 1):
        pairs = [(other, theirs), (this, ours)]
        for tree, found in pairs if number % 2 else reversed(pairs):
            steps = tree.steps(batch)
            if number:
                found += steps
    return theirs, ours


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a change costs: the engines of two trees in turns.")
    parser.add_argument("other", type=Path, help="the other tree, built")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        initialise_checkpoint(checkpoint, ModelConfig(), dtype=torch.bfloat16)
        sizes = (checkpoint, args.workers, args.replicas)
        with Tree(args.other.resolve(), *sizes) as other, Tree(_HERE, *sizes) as this:
            print("batch    steps  other ms  this ms  ratio of medians  of lower quartiles", flush=True)
            for batch in map(int, args.batches.split(",")):
                theirs, ours = compare(other, this, batch, args.rounds)
                print(_line(batch, theirs, ours), flush=True)


def _line(batch: int, theirs: Sequence[float], ours: Sequence[float]) -> str:
    medians = [statistics.median(steps) for steps in (theirs, ours)]
    lower = [statistics.quantiles(steps, n=4)[0] for steps in (theirs, ours)]
    other, this = (1e3 * median for median in medians)
    ratios = f"{medians[1] / medians[0]:16.3f}  {lower[1] / lower[0]:18.3f}"
    return f"{batch:5}  {len(ours):7}  {other:8.2f}  {this:7.2f}  {ratios}"


if __name__ == "__main__":
    main()
