"""The table for people, and the same for machines."""

from collections.abc import Iterator, Sequence

from benchmarks.peers.jobs import Load, Timing
from benchmarks.peers.rounds import Measured
from benchmarks.peers.verdict import OURS, Phase, median_ratio, rate

PHASES: tuple[Phase, Phase] = ("prefill", "decode")
HEADER = (
    f"{'prompt':>6} {'new':>4} {'batch':>5}  {'system':<15} {'prefill tok/s':>13} {'decode tok/s':>12} "
    f"{'ours/it prefill':>15} {'decode':>6}  way"
)


def lines(measured: Measured) -> Iterator[str]:
    """One a system and load; the ratios are medians of the rounds' ratios."""
    yield HEADER
    last: Load | None = None
    for (name, load), timings in sorted(measured.timings.items(), key=lambda item: _order(item[0][1])):
        if last not in (None, load):
            yield ""
        last = load
        ours = measured.timings.get((OURS, load))
        rates = [_shown(rate(timings, load, phase), 0) for phase in PHASES]
        than = [_ratio(ours, timings, load, phase) for phase in PHASES]
        yield (
            f"{load.prompt_tokens:>6} {load.new_tokens:>4} {load.batch:>5}  {name:<15} {rates[0]:>13} "
            f"{rates[1]:>12} {than[0]:>15} {than[1]:>6}  {measured.ways[name, load]}"
        )


def failure_lines(measured: Measured) -> Iterator[str]:
    """One for each system that was not measured, or not to the end."""
    for name, why in measured.failures.items():
        yield f"{name:<15} failed: {why}"


def rows(measured: Measured) -> list[dict[str, object]]:
    return [
        {
            "system": name,
            "batch": load.batch,
            "prompt_tokens": load.prompt_tokens,
            "new_tokens": load.new_tokens,
            "prefill_tokens_per_second": rate(timings, load, "prefill"),
            "decode_tokens_per_second": rate(timings, load, "decode"),
            "prefill_seconds": [timing.prefill_seconds for timing in timings],
            "decode_seconds": [timing.decode_seconds for timing in timings],
            "way": measured.ways[name, load],
        }
        for (name, load), timings in measured.timings.items()
    ]


def _order(load: Load) -> tuple[int, int]:
    return load.prompt_tokens, load.batch


def _ratio(ours: Sequence[Timing] | None, theirs: Sequence[Timing], load: Load, phase: Phase) -> str:
    if ours is None or ours is theirs or rate(theirs, load, phase) is None:
        return ""
    return _shown(median_ratio(ours, theirs, phase), 2)


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
