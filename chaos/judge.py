"""Judge: what a record comes to, and which expectations it breaks. Pure."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from chaos.history import Stream
from chaos.invariants import num_changed, unaccounted, violations
from chaos.measures import Measures, Windows, measure
from chaos.record import FaultRecord, Record
from chaos.scenario import Expect

# Of the broken invariants, which may be as many as there are streams.
MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failures` are one line each; none means that all held. `added_gap` is by how many seconds the longest
    gap during a fault exceeds the p99 outside; None where there is not both."""

    outcomes: Counter[str]
    statuses: Counter[str]
    num_tokens: int
    changed_requests: int
    changed_tokens: int
    during: Measures
    outside: Measures
    added_gap: float | None
    failures: tuple[str, ...]

    @property
    def num_lost(self) -> int:
        return self.outcomes["failed"] + self.outcomes["open"]


def judge(record: Record) -> Verdict:
    changes = [num_changed(stream, record.goldens(stream)) for stream in record.streams]
    windows = Windows(span for fault in record.faults if (span := _window(fault, record.ended)) is not None)
    during, outside = measure(record.streams, windows, (record.began, record.ended))
    longest, usual = during.gaps.longest, outside.gaps.p99
    verdict = Verdict(
        Counter(stream.outcome for stream in record.streams),
        Counter(stream.ends[0].code for stream in record.streams if stream.outcome == "failed"),
        sum(len(stream.token_ids) for stream in record.streams),
        sum(change > 0 for change in changes),
        sum(changes),
        during,
        outside,
        None if longest is None or usual is None else max(0.0, longest - usual),
        (),
    )
    expect = record.scenario.expect
    failures = [
        *_fault_failures(record, expect),
        *_request_failures(record, verdict, expect),
        *_wait_failures(verdict, expect),
        *_broken_invariants(record),
    ]
    return Verdict(
        **{name: getattr(verdict, name) for name in Verdict.__slots__} | {"failures": tuple(failures)}
    )


def _window(fault: FaultRecord, end: float) -> tuple[float, float] | None:
    if not fault.wants_restored:
        return None
    return (fault.began, end if fault.restored is None else fault.restored)


def _fault_failures(record: Record, expect: Expect) -> Iterator[str]:
    if not record.faults:
        yield "nothing was broken"
    for fault in record.faults:
        name = _name(fault)
        if fault.problem:
            yield f"{name}: {fault.problem}"
        elif fault.wants_restored and (fault.restored or record.ended) - fault.began > expect.restored_within:
            seconds = (fault.restored or record.ended) - fault.began
            yield f"{name}: as before after {seconds:.2f} s, {expect.restored_within:g} s are allowed"
    losses = record.worker_losses
    if expect.max_worker_losses is not None and losses > expect.max_worker_losses:
        yield f"the server gave up workers {losses} times, {expect.max_worker_losses} are allowed"
    if losses < expect.min_worker_losses:
        yield f"the server gave up workers {losses} times, at least {expect.min_worker_losses} were due"


def _request_failures(record: Record, verdict: Verdict, expect: Expect) -> Iterator[str]:
    if not verdict.outcomes["completed"]:
        yield "no request was completed"
    for what, count, allowed in (
        ("requests lost", verdict.num_lost, expect.max_lost),
        ("requests refused", verdict.outcomes["refused"], expect.max_refused),
        ("tokens changed", verdict.changed_tokens, expect.max_changed),
    ):
        if allowed != "any" and count > allowed:
            yield f"{count} {what}, {allowed} are allowed"
    for code, count in sorted(verdict.statuses.items()):
        if expect.statuses and code not in expect.statuses:
            yield f"{count} requests ended {code}; {', '.join(expect.statuses)} is allowed"


def _wait_failures(verdict: Verdict, expect: Expect) -> Iterator[str]:
    longest = max(side.gaps.longest or 0.0 for side in (verdict.during, verdict.outside))
    if expect.max_gap is not None and longest > expect.max_gap:
        yield f"the longest gap is {longest:.3f} s, {expect.max_gap:g} s are allowed"
    if expect.max_gap_added is not None and (verdict.added_gap or 0.0) > expect.max_gap_added:
        yield f"faults added {verdict.added_gap:.3f} s to a gap, {expect.max_gap_added:g} s are allowed"
    during, outside = verdict.during.gaps.p99, verdict.outside.gaps.p99
    if expect.max_p99_ratio is not None and during and outside and during > expect.max_p99_ratio * outside:
        yield (
            f"the p99 gap during faults is {during / outside:.2f} times that outside, "
            f"{expect.max_p99_ratio:g} are allowed"
        )


def _broken_invariants(record: Record) -> Iterator[str]:
    found = list(unaccounted(record.streams, record.num_sent))
    found += [
        f"stream {number} (request {stream.request}): {problem}"
        for number, stream in enumerate(record.streams)
        for problem in violations(stream)
    ]
    found += [f"afterwards {what}" for what in record.left_over]
    yield from found[:MAX_SHOWN]
    if len(found) > MAX_SHOWN:
        yield f"and {len(found) - MAX_SHOWN} more"


def first_errors(streams: list[Stream], count: int = 3) -> list[str]:
    """Of the failed ones, each different message once."""
    messages = (f"{s.ends[0].code}: {s.ends[0].message}" for s in streams if s.outcome == "failed")
    return list(dict.fromkeys(messages))[:count]


def _name(fault: FaultRecord) -> str:
    return fault.do if fault.rank is None else f"{fault.do} worker {fault.rank}"
