"""What the measurements of all rounds amount to: rates, ratios, and the bars that were set for them."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.jobs import Load, Timing
from moe_model.names import RoundedForm

Phase = Literal["prefill", "decode"]
# By system and load, one of each round.
Timings = Mapping[tuple[str, Load], Sequence[Timing]]

OURS, OURS_WORKERS = "ours", "ours-workers"
# In this process, rounded: (experts, the other matrices). llama.cpp rounds all of them.
OURS_ROUNDED: Mapping[str, tuple[RoundedForm, RoundedForm]] = {
    "ours-int8": ("int8", "model"),
    "ours-q8": ("q8", "q8"),
    "ours-q4": ("q4", "q4"),
}
LLAMA, TRANSFORMERS, ORIGIN = "llama.cpp", "transformers", "origin"


def num_tokens(load: Load, phase: Phase) -> int:
    """Of all sequences together. The first new token belongs to the prefill."""
    return load.batch * (load.prompt_tokens if phase == "prefill" else load.new_tokens - 1)


def seconds(timing: Timing, phase: Phase) -> float:
    return timing.prefill_seconds if phase == "prefill" else timing.decode_seconds


def rate(timings: Sequence[Timing], load: Load, phase: Phase) -> float | None:
    """Tokens per second, the median of the rounds; None where the load has no such phase."""
    count = num_tokens(load, phase)
    return count / statistics.median(seconds(timing, phase) for timing in timings) if count else None


def ratios(ours: Sequence[Timing], theirs: Sequence[Timing], phase: Phase) -> list[float]:
    """How many times as fast as theirs ours is, round by round: what slows a round slows both. A system that
    has failed has its first rounds only."""
    return [seconds(b, phase) / seconds(a, phase) for a, b in zip(ours, theirs, strict=False)]


def median_ratio(ours: Sequence[Timing], theirs: Sequence[Timing], phase: Phase) -> float:
    return statistics.median(ratios(ours, theirs, phase))


@dataclass(frozen=True, slots=True)
class Bar:
    """`wanted` is the least ratio, `beyond` the one to be proud of. A batch of None: the long prompt."""

    phase: Phase
    batch: int | None
    ours: str
    theirs: str
    wanted: float
    beyond: float


BARS = (
    Bar("decode", 1, OURS, f"{LLAMA}-bf16", 0.95, 1.1),
    Bar("decode", 1, "ours-q8", f"{LLAMA}-q8_0", 0.9, 1.05),
    Bar("decode", 1, "ours-q4", f"{LLAMA}-q4_0", 0.9, 1.05),
    Bar("decode", 32, OURS, f"{LLAMA}-bf16", 2.5, 4.0),
    Bar("decode", 32, "ours-q8", f"{LLAMA}-q8_0", 2.0, 3.0),
    Bar("prefill", None, OURS, f"{LLAMA}-bf16", 2.0, 3.0),
    Bar("prefill", None, OURS, TRANSFORMERS, 1.0, 1.3),
    Bar("prefill", 32, OURS, TRANSFORMERS, 0.9, 1.2),
    Bar("decode", 32, OURS_WORKERS, TRANSFORMERS, 2.0, 3.0),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar, and the median, the least and the greatest ratio of the rounds."""

    bar: Bar
    theirs: str
    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        bar = self.bar
        where = "of one long prompt" if bar.batch is None else f"of {bar.batch} sequences"
        word = "beyond" if self.median >= bar.beyond else "met" if self.median >= bar.wanted else "MISSED"
        return (
            f"{bar.phase} {where}, {bar.ours} / {self.theirs}: {self.median:.2f} "
            f"({self.least:.2f} to {self.greatest:.2f}); wanted {bar.wanted}, beyond {bar.beyond}: {word}"
        )


def verdicts(timings: Timings, bars: Iterable[Bar] = BARS) -> Iterator[Verdict]:
    """Of the bars that were measured; "llama.cpp" stands for each of its types."""
    for bar in bars:
        for (name, load), theirs in timings.items():
            ours = timings.get((bar.ours, load))
            if ours is not None and name.startswith(bar.theirs) and _is_of(bar, load):
                found = ratios(ours, theirs, bar.phase)
                yield Verdict(bar, name, statistics.median(found), min(found), max(found))


def _is_of(bar: Bar, load: Load) -> bool:
    """A load of a single new token is there for its prefill."""
    is_long_prompt = load.new_tokens == 1
    return is_long_prompt if bar.batch is None else not is_long_prompt and load.batch == bar.batch
