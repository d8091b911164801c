"""What a mixed batch costs beside one that is all greedy. python -m benchmarks.sampling [CHECKPOINT]

The same prompts in the same engine, in turns: a step of the one, a step of the other, so that a machine whose
speed drifts slows both. The mix holds every kind of sampling there is, the same number of rows of each.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.checkpoints import opened
from benchmarks.report import Report, add_out_argument, reporting
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.request import Request, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.compute import dtype_of
from coordinator.server.experts import open_experts
from coordinator.server.process import configure_process
from moe_model.checkpoint.manifest import DTYPES
from moe_model.checkpoint.reader import Checkpoint
from moe_model.sampling.params import SamplingParams

PROMPT_TOKENS = 32
GREEDY = SamplingParams(temperature=0)
KINDS = (
    GREEDY,
    SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    SamplingParams(temperature=1.0, top_p=0.95),
    SamplingParams(temperature=0.7, top_k=20, min_p=0.05),
    SamplingParams(temperature=0.9, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.3),
    SamplingParams(temperature=0.8, top_k=40, repetition_penalty=1.1),
    SamplingParams(temperature=0.8, top_k=50, logit_bias=tuple((token, 2.0) for token in range(5, 25))),
    SamplingParams(temperature=1.0),
)


def mixed(index: int) -> SamplingParams:
    return replace(KINDS[index % len(KINDS)], seed=index)


def submit(engine: Engine, name: str, batch: int, vocab_size: int, new_tokens: int, *, mix: bool) -> None:
    for index in range(batch):
        prompt = tuple((37 * index + 11 * i) % (vocab_size - 4) + 4 for i in range(PROMPT_TOKENS))
        sampling = mixed(index) if mix else GREEDY
        engine.submit(Request(f"{name}-{index}", prompt, sampling, StopRules(new_tokens, ignore_eos=True)))


def step_seconds(engine: Engine) -> float:
    started = time.perf_counter()
    for output in engine.step():
        if output.error is not None:
            raise output.error
    return time.perf_counter() - started


def measure(engines: Sequence[Engine], batch: int, vocab_size: int, num_steps: int) -> dict[str, float]:
    """Medians of steps taken in turns; `ratio` is the median of the pairs' own."""
    for engine, mix in zip(engines, (False, True), strict=True):
        submit(engine, "bench", batch, vocab_size, num_steps + 2, mix=mix)
        step_seconds(engine)
        step_seconds(engine)
    pairs = [tuple(map(step_seconds, engines)) for _ in range(num_steps - 1)]
    greedy, mix_ = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "greedy_ms": 1e3 * greedy,
        "mixed_ms": 1e3 * mix_,
        "ratio": statistics.median(mixed_s / greedy_s for greedy_s, mixed_s in pairs),
    }


def run(checkpoint: Checkpoint, config: EngineConfig, args: argparse.Namespace, report: Report) -> None:
    with open_experts(checkpoint, config, WorkersConfig(num_workers=0)) as experts:
        engines = [build_engine(checkpoint, config, experts) for _ in range(2)]
        found = measure(engines, args.batch, checkpoint.config.vocab_size, args.steps)
    print(f"batch {args.batch}, a step in ms: greedy {found['greedy_ms']:.2f}, mixed {found['mixed_ms']:.2f}")
    print(f"a mixed step takes {found['ratio']:.3f} of a greedy one, median of {args.steps - 1} pairs")
    facts = {"batch": args.batch, "dtype": args.dtype, "vocab_size": checkpoint.config.vocab_size}
    report.finish({**facts, **found})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a mixed batch costs beside an all-greedy one.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="default: a random 54.6 M model")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    add_out_argument(parser)
    args = parser.parse_args(argv)
    config = EngineConfig(
        dtype=args.dtype, max_num_seqs=args.batch, max_step_tokens=args.batch * PROMPT_TOKENS
    )
    configure_process(config)
    with (
        reporting("sampling", args.out, argv) as report,
        opened(args.checkpoint, dtype_of(config)) as checkpoint,
    ):
        run(checkpoint, config, args, report)


if __name__ == "__main__":
    main()
