"""What a long prompt costs the streams beside it: the longest time between two of their tokens.

    python -m benchmarks.gap

16 streams decode, and a prompt of 8,192 tokens comes, of which the prefix cache knows nothing. Bounds
(`--max-gap`) take turns, so that a slow minute falls on all of them. The origin is `off`: chunks as large as
the budget of a step.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import Report, add_out_argument, reporting
from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.request import Request, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.compute import dtype_of
from coordinator.server.experts import open_experts
from coordinator.server.process import configure_process
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.manifest import DTYPES
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.sampling.params import SamplingParams

STREAM_TOKENS = 32
# Tokens of the streams before the prompt comes and after its first token.
NUM_ALONE = 60


@dataclass(frozen=True, slots=True)
class GapLoad:
    streams: int = 16
    prompt_tokens: int = 8192

    @property
    def context(self) -> int:
        """Positions that hold a stream for as long as any bound makes the prompt take, and the prompt."""
        return 2 * self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Gap:
    """Seconds. `alone` and `beside` are the longest between two tokens of the streams, without the prompt and
    with it; `first_token` is the prompt's, from when it came."""

    alone: float
    beside: float
    first_token: float
    num_steps: int

    @property
    def added(self) -> float:
        return self.beside - self.alone


def measure_gap(engine: Engine, vocab_size: int, load: GapLoad, turn: int = 0) -> Gap:
    """One prompt. `turn`: another number for each with the same engine, since prompts are to be new."""
    prompts = [
        _prompt(vocab_size, STREAM_TOKENS, turn * (load.streams + 1) + index) for index in range(load.streams)
    ]
    for index, prompt in enumerate(prompts):
        engine.submit(_request(f"stream-{index}", prompt, load.context - STREAM_TOKENS))
    engine.step()
    alone = [seconds for seconds, _ in _steps(engine, NUM_ALONE)]
    long = _prompt(vocab_size, load.prompt_tokens, turn * (load.streams + 1) + load.streams)
    engine.submit(_request("long", long, 1))
    beside: list[float] = []
    while True:
        seconds, names = _step(engine)
        beside.append(seconds)
        if "long" in names:
            break
    alone += [seconds for seconds, _ in _steps(engine, NUM_ALONE)]
    for index in range(load.streams):
        engine.abort(f"stream-{index}")
    return Gap(max(alone), max(beside), sum(beside), len(beside))


def _prompt(vocab_size: int, num_tokens: int, number: int) -> tuple[int, ...]:
    return tuple((number + 11 * i) % (vocab_size - 4) + 4 for i in range(num_tokens))


def _request(name: str, prompt: tuple[int, ...], max_tokens: int) -> Request:
    return Request(name, prompt, SamplingParams(temperature=0), StopRules(max_tokens, ignore_eos=True))


def _steps(engine: Engine, num_steps: int) -> Iterator[tuple[float, set[str]]]:
    for _ in range(num_steps):
        yield _step(engine)


def _step(engine: Engine) -> tuple[float, set[str]]:
    """Seconds, and who got a token. Every stream has one in every step: the step is their gap."""
    started = time.perf_counter()
    outputs = engine.step()
    seconds = time.perf_counter() - started
    for output in outputs:
        if output.error is not None:
            raise output.error
    return seconds, {output.request_id for output in outputs if output.token_ids}


@contextmanager
def long_model(like: Path | None, load: GapLoad, config: EngineConfig) -> Iterator[Checkpoint]:
    """Random weights in the sizes of the default model, or of a checkpoint, for contexts of this load."""
    sizes = ModelConfig() if like is None else Checkpoint.open(like).config
    with TemporaryDirectory(prefix="expertmesh-bench-") as folder:
        made = Path(folder) / "random"
        initialise_checkpoint(made, replace(sizes, max_seq_len=load.context), dtype=dtype_of(config))
        yield Checkpoint.open(made)


def measure_bounds(
    checkpoint: Checkpoint,
    config: EngineConfig,
    workers: WorkersConfig,
    bounds: Sequence[float | None],
    load: GapLoad,
    rounds: int,
) -> dict[float | None, list[Gap]]:
    """By the bound in milliseconds. What an engine has learned in one round, it knows in the next."""
    found: dict[float | None, list[Gap]] = {bound: [] for bound in bounds}
    with open_experts(checkpoint, config, workers) as experts:
        engines = {
            bound: build_engine(checkpoint, replace(config, max_gap_ms=bound), experts) for bound in bounds
        }
        for turn in range(rounds):
            for bound, engine in engines.items():
                found[bound].append(measure_gap(engine, checkpoint.config.vocab_size, load, turn))
    return found


def run(checkpoint: Checkpoint, config: EngineConfig, args: argparse.Namespace, report: Report) -> None:
    load = GapLoad(args.streams, args.prompt_tokens)
    workers = WorkersConfig(num_workers=args.workers)
    found = measure_bounds(checkpoint, config, workers, args.bounds, load, args.rounds)
    print(
        f"{'bound':>8} {'alone ms':>9} {'beside ms':>10} {'added ms':>9} {'first token s':>14} {'steps':>6}"
    )
    for bound, gaps in found.items():
        alone, beside, added = (
            1e3 * statistics.median(column)
            for column in zip(*((gap.alone, gap.beside, gap.added) for gap in gaps), strict=True)
        )
        first = statistics.median(gap.first_token for gap in gaps)
        steps = statistics.median(gap.num_steps for gap in gaps)
        print(f"{_name(bound):>8} {alone:>9.1f} {beside:>10.1f} {added:>9.1f} {first:>14.2f} {steps:>6.0f}")
    report.finish(
        {
            "load": asdict(load),
            "dtype": config.dtype,
            "workers": args.workers,
            "bounds": [
                {
                    "bound_ms": bound,
                    "added_seconds": [gap.added for gap in gaps],
                    "rounds": [asdict(gap) for gap in gaps],
                }
                for bound, gaps in found.items()
            ],
        }
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a long prompt costs the streams beside it.")
    parser.add_argument(
        "--like", type=Path, help="a checkpoint whose sizes the model has (the default model's)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--streams", type=int, default=GapLoad().streams)
    parser.add_argument("--prompt-tokens", type=int, default=GapLoad().prompt_tokens)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--bounds",
        type=_bound,
        nargs="+",
        default=[None, EngineConfig().max_gap_ms],
        help="milliseconds, `off`, or `default` for what a server has (off default)",
    )
    add_out_argument(parser)
    args = parser.parse_args(argv)
    config = EngineConfig(dtype=args.dtype)
    configure_process(config)
    load = GapLoad(args.streams, args.prompt_tokens)
    with reporting("gap", args.out, argv) as report, long_model(args.like, load, config) as checkpoint:
        run(checkpoint, config, args, report)


def _bound(text: str) -> float | None:
    if text == "default":
        return EngineConfig().max_gap_ms
    return None if text == "off" else float(text)


def _name(bound: float | None) -> str:
    return "off" if bound is None else f"{bound:g}"


if __name__ == "__main__":
    main()
