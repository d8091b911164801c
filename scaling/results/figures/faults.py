"""Tokens over time in cells with a fault, beside the same cell without one."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from scaling.cell import Fault
from scaling.observation import Observation
from scaling.results.figures.drawing import FOREGROUND, SERIES, Canvas
from scaling.results.figures.view import MAX_PANELS, Part, View
from scaling.results.html import figure

# A timeline's bins a second, and how many of them are averaged.
PER_SECOND, WINDOW = 10, 5
# As its faults last: no longer than until they are healed.
HEALED = ("pause", "slow", "cut")


def part(view: View) -> Part | None:
    """None where no cell has both a fault and a timeline."""
    ran, figures = view.results.of(), []
    for summary in view.summaries:
        fault, observations = summary.cell.fault, ran[summary.key]
        rate_RT = rates(observations)
        if fault is not None and rate_RT.size:
            plain = ran.get(msgspec.structs.replace(summary.cell, fault=None).key, [])
            failed = sum(each.num_failed for each in observations)
            total = sum(each.num_requests for each in observations)
            title = f"{view.words(summary)}: {failed} of {total} requests failed"
            figures.append(figure(_drawn(rate_RT, fault, [each.tokens_per_s for each in plain]), title))
    if not figures:
        return None
    reading = (
        "Tokens a second that callers got, averaged over half a second: the line is the median "
        "over the rounds, "
        "the band has all of them. The fault is marked; the dashed line is the throughput of the same cell "
        "without it. What lies between them is what the fault cost."
    )
    return Part("Goodput under faults", reading, "".join(figures[:MAX_PANELS]))


def rates(observations: Sequence[Observation]) -> NDArray[np.float64]:
    """Tokens a second of each round and bin, [R, T]: over a moving window, as long as the longest round
    lasts; a round that has ended gives 0."""
    timelines = [each.timeline for each in observations if len(each.timeline) >= WINDOW]
    length = max(map(len, timelines), default=0)
    padded = [np.pad(np.asarray(line, dtype=np.float64), (0, length - len(line))) for line in timelines]
    window = np.full(WINDOW, PER_SECOND / WINDOW)
    return np.asarray([np.convolve(line, window, mode="valid") for line in padded], dtype=np.float64)


def _drawn(rate_RT: NDArray[np.float64], fault: Fault, plain: Sequence[float]) -> str:
    time_T = (np.arange(rate_RT.shape[1]) + WINDOW / 2) / PER_SECOND
    with Canvas(1, 1, 2.5) as canvas:
        axes = canvas.axes[0]
        if len(rate_RT) > 1:
            axes.fill_between(
                time_T, rate_RT.min(axis=0), rate_RT.max(axis=0), color=SERIES[0], alpha=0.25, linewidth=0
            )
        axes.plot(time_T, np.median(rate_RT, axis=0), color=SERIES[0], label="with the fault")
        if plain:
            axes.axhline(
                float(np.median(plain)), color=FOREGROUND, linestyle="--", linewidth=1, label="without it"
            )
        end = fault.at_s + fault.seconds
        if fault.kind in HEALED:
            axes.axvspan(fault.at_s, end, color=SERIES[1], alpha=0.2, label=fault.kind, linewidth=0)
        else:
            axes.axvline(fault.at_s, color=SERIES[1], label=fault.kind)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, time_T[-1] + WINDOW / 2 / PER_SECOND)
        axes.set_xlabel("seconds of the load")
        axes.set_ylabel("tokens/s")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0.0)
    return canvas.svg
