"""Report: a verdict as a table for people and as one JSON line."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from chaos.judge import Verdict, first_errors
from chaos.measures import BOUNDS, Measures, Spread
from chaos.record import FaultRecord, Record


def table(record: Record, verdict: Verdict) -> str:
    load = record.scenario.load
    clients = f"{load.streams} streams" if load.loop == "closed" else f"{load.rate:g} requests/s"
    lines = [
        f"{record.scenario.name}: {clients}, {load.tokens} tokens each, at {record.address}, "
        f"seed {record.scenario.course.seed}, {record.ended - record.began:.1f} s",
        "",
        *_fault_lines(record),
        "",
        *_measure_lines(verdict),
        "",
        *_histogram_lines(verdict.outside, verdict.during),
        "",
        *_request_lines(record, verdict),
        "",
        *([f"FAILED: {failure}" for failure in verdict.failures] or ["passed"]),
    ]
    return "\n".join(lines)


def as_json(record: Record, verdict: Verdict) -> str:
    """Times are seconds since the load began."""
    course, load = record.scenario.course, record.scenario.load
    return json.dumps(
        {
            "chaos": record.scenario.name,
            "passed": not verdict.failures,
            "failures": verdict.failures,
            "seed": course.seed,
            "seconds": _rounded(record.ended - record.began),
            "load": asdict(load),
            "requests": {
                "sent": record.num_sent,
                "completed": verdict.outcomes["completed"],
                "lost": verdict.num_lost,
                "refused": verdict.outcomes["refused"],
                "cancelled": verdict.outcomes["cancelled"],
            },
            "statuses": dict(verdict.statuses),
            "tokens": verdict.num_tokens,
            "changed_tokens": verdict.changed_tokens,
            "changed_requests": verdict.changed_requests,
            "exchanged_outputs": record.num_exchanged,
            "added_gap_seconds": _rounded(verdict.added_gap),
            "outside": _side(verdict.outside),
            "during": _side(verdict.during),
            "gap_histogram_seconds": BOUNDS,
            "worker_losses": record.worker_losses,
            "idle_after_seconds": _rounded(record.idle_after),
            "faults": [_fault(fault, record.began) for fault in record.faults],
        }
    )


def _fault_lines(record: Record) -> Iterator[str]:
    yield f"{'at, s':>8}  {'fault':<20} {'restored after, s':>17}  proof"
    for fault in record.faults:
        name = fault.do if fault.rank is None else f"{fault.do} worker {fault.rank}"
        restored = "" if fault.restored is None else f"{fault.restored - fault.began:.2f}"
        proof = fault.proof or f"none: {fault.problem}"
        yield f"{fault.began - record.began:>8.2f}  {name:<20} {restored:>17}  {proof}"
    yield f"the server gave up workers {record.worker_losses} times"


def _measure_lines(verdict: Verdict) -> Iterator[str]:
    outside, during = verdict.outside, verdict.during
    yield f"{'':<22}{'outside faults':>16}{'during faults':>16}"
    rates = (_shown(side.tokens_per_second, 1) for side in (outside, during))
    yield f"{'tokens/s':<22}" + "".join(f"{rate:>16}" for rate in rates)
    for name, out, dur in (
        ("gap", outside.gaps, during.gaps),
        ("first token", outside.first_tokens, during.first_tokens),
    ):
        for point in ("p50", "p99", "longest"):
            values = (_shown(getattr(side, point)) for side in (out, dur))
            yield f"{f'{name}, {point}, ms':<22}" + "".join(f"{value:>16}" for value in values)
    if verdict.added_gap is not None:
        yield f"the faults added {1e3 * verdict.added_gap:.1f} ms to the longest gap"


def _histogram_lines(outside: Measures, during: Measures) -> Iterator[str]:
    """Without the empty rows at both ends."""
    names = [*(f"up to {1e3 * bound:g} ms" for bound in BOUNDS), "longer"]
    rows = list(zip(names, outside.histogram, during.histogram, strict=True))
    filled = [number for number, (_, a, b) in enumerate(rows) if a or b]
    if filled:
        yield f"{'gaps':<22}{'outside faults':>16}{'during faults':>16}"
        for name, a, b in rows[filled[0] : filled[-1] + 1]:
            yield f"{name:<22}{a:>16}{b:>16}"


def _request_lines(record: Record, verdict: Verdict) -> Iterator[str]:
    outcomes = verdict.outcomes
    others = "".join(f", {outcomes[name]} {name}" for name in ("refused", "cancelled") if outcomes[name])
    completed = outcomes["completed"]
    yield f"requests  {record.num_sent} sent, {completed} completed, {verdict.num_lost} lost{others}"
    yield f"tokens    {verdict.num_tokens} received, {verdict.changed_tokens} changed"
    if record.num_exchanged is not None:
        yield f"          {record.num_exchanged} of {len(record.golden)} outputs are others with the new one"
    for error in first_errors(list(record.streams)):
        yield f"          {error}"
    if record.idle_after is not None:
        yield f"the server held nothing any more after {record.idle_after:.2f} s"


def _side(side: Measures) -> dict[str, object]:
    return {
        "tokens_per_second": _rounded(side.tokens_per_second),
        "gap_seconds": _spread(side.gaps),
        "first_token_seconds": _spread(side.first_tokens),
        "gap_histogram": side.histogram,
    }


def _spread(spread: Spread) -> dict[str, object]:
    return {name: _rounded(value) for name, value in asdict(spread).items()}


def _fault(fault: FaultRecord, began: float) -> dict[str, object]:
    restored = None if fault.restored is None else fault.restored - fault.began
    return {
        "do": fault.do,
        "rank": fault.rank,
        "pid": fault.pid,
        "at_seconds": _rounded(fault.began - began),
        "restored_after_seconds": _rounded(restored),
        "proof": fault.proof,
        "problem": fault.problem,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _shown(value: float | None, factor: float = 1e3) -> str:
    return "" if value is None else f"{factor * value:.1f}"
