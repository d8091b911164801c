"""The rows: what each runs, and which figures it reads from the line for machines that this ends with."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bars.figure import Bar, Figure

Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """`command`: what follows `python -m`, then how much of it: `whole`, or `quick`, which is a matter of
    seconds and means nothing. `read` takes its result."""

    command: tuple[str, ...]
    whole: tuple[str, ...]
    quick: tuple[str, ...]
    read: Callable[[Found], Iterable[Figure]]
    takes_beside: bool = False

    def arguments(self, *, quick: bool, beside: str | None) -> list[str]:
        other = [f"--beside={beside}"] if self.takes_beside and beside else []
        return [*self.command, *(self.quick if quick else self.whole), *other]


def _workers(number: int) -> str:
    return f"{number} worker" if number == 1 else f"{number} workers"


def _grpc(found: Found) -> Iterator[Figure]:
    for row in found["served"]:
        what = f"through gRPC / engine, {row['clients']} clients, {_workers(row['workers'])}"
        yield Figure(Bar(what, "at least", 0.92, 0.97), tuple(row["share_of_engine_rounds"]))


def _overload(found: Found) -> Iterator[Figure]:
    yield Figure(
        Bar("overload, 3 times the peak: goodput / peak", "at least", 0.9, 0.95),
        (found["goodput_over_peak"],),
    )
    refusals = Bar("overload: refusals, 99 % within", "at most", 25.0, unit=" ms")
    yield Figure(refusals, (1e3 * found["refusal_p99_seconds"],))


def _dispatch(found: Found) -> Iterator[Figure]:
    for row in found["ratios"]:
        what = f"pool's dispatch of 2 KiB / bare TCP, {_workers(row['workers'])}"
        yield Figure(Bar(what, "at most", 1.6, 1.3), tuple(row["pool_over_bare_rounds"]))


_SHARES = {1: (0.8, 0.9), 32: (0.92, 0.97)}


def _of_in_process(found: Found) -> Iterator[Figure]:
    for row in found["worker_shares"]:
        what = f"{_workers(row['workers'])} / in-process, decode, batch {row['batch']}"
        yield Figure(Bar(what, "at least", *_SHARES[row["batch"]]), tuple(row["rounds"]))


def _step(found: Found) -> Iterator[Figure]:
    bar = Bar("decode step outside kernels and wire, in-process, batch 1", "at most", 0.5, 0.2, " ms")
    (row,) = found["splits"]
    yield Figure(bar, (1e-3 * row["outside_microseconds"],))


def _gap(found: Found) -> Iterator[Figure]:
    load = found["load"]
    what = f"{load['prompt_tokens']:,} tokens beside {load['streams']} streams, {_workers(found['workers'])}"
    (row,) = found["bounds"]
    bar = Bar(f"a prompt of {what}: longest gap added", "at most", 50.0, 20.0, " ms")
    yield Figure(bar, tuple(1e3 * seconds for seconds in row["added_seconds"]))


def _streams(found: Found) -> Iterator[Figure]:
    what = f"{found['streams']:,} streams at once: the last decision"
    yield Figure(Bar(what, "at most", 0.5, unit=" s"), tuple(found["decision_seconds"]))


def _readers(found: Found) -> Iterator[Figure]:
    what = f"{found['background']} readers that never read: the others' loss"
    yield Figure(Bar(what, "at most", 5.0, unit=" %"), tuple(100 * loss for loss in found["slowdown_rounds"]))


def _engine_death(found: Found) -> Iterator[Figure]:
    for row in found["deaths"]:
        where = f"kill -9 of the engine, {_workers(row['workers'])}"
        ended = Bar(f"{where}: all {found['streams']} streams ended", "at most", 1.0, unit=" s")
        yield Figure(ended, tuple(row["ended_seconds"]))
        yield Figure(
            Bar(f"{where}: ready again", "at most", 5.0, 2.0, " s"),
            tuple(row["ready_seconds"]),
        )


def _front_death(found: Found) -> Iterator[Figure]:
    """All rounds together: none means never."""
    where = "kill -9 of one of 2 fronts: the other's streams"
    for name in ("lost", "changed"):
        yield Figure(Bar(f"{where} {name}", "at most", 0.0), (sum(found[name]),))


def _start(found: Found) -> Iterator[Figure]:
    """Nothing to compare with: no figures, as the bars are differences."""
    for row in found["more_than_beside"]:
        where = f"more than beside, {_workers(row['workers'])}"
        yield Figure(Bar(f"start to READY, {where}", "at most", 1.0, unit=" s"), tuple(row["seconds"]))
        for kind in ("pss", "rss"):
            bar = Bar(f"memory of all processes ({kind.upper()}), {where}", "at most", 150.0, unit=" MiB")
            yield Figure(bar, tuple(each / 2**20 for each in row[kind]))


_TINY = ("--checkpoint=demo/checkpoint", "--new-tokens=8")
ROWS: Mapping[str, Row] = {
    "grpc": Row(
        ("benchmarks", "serve", "--clients=32", "--rates="),
        ("--workers=0,2", "--rounds=3"),
        (*_TINY, "--workers=0", "--requests=1", "--rounds=1"),
        _grpc,
    ),
    "overload": Row(
        ("benchmarks.service", "overload"), ("--seconds=60",), ("--seconds=1", "--warm-up=0.5"), _overload
    ),
    "dispatch": Row(
        ("benchmarks", "dispatch", "--workers=1,2", "--sizes=2 KiB"),
        ("--rounds=5",),
        ("--rounds=1", "--seconds=0.02"),
        _dispatch,
    ),
    "workers": Row(
        ("benchmarks", "engine", "--workers=0,2", "--expert-slices=2", "--batches=1,32", "--no-split"),
        ("--repeats=7",),
        (*_TINY, "--repeats=1"),
        _of_in_process,
    ),
    "step": Row(("benchmarks", "engine", "--workers=0", "--batches=1", "--repeats=1"), (), _TINY, _step),
    "gap": Row(
        ("benchmarks.gap", "--bounds=default"),
        ("--rounds=5",),
        ("--like=demo/checkpoint", "--prompt-tokens=200", "--rounds=1"),
        _gap,
    ),
    "streams": Row(("benchmarks.service", "streams"), ("--rounds=3",), ("--streams=100",), _streams),
    "readers": Row(
        ("benchmarks.service", "readers"),
        ("--rounds=3", "--seconds=20"),
        ("--readers=4", "--seconds=1"),
        _readers,
    ),
    "engine-death": Row(
        ("benchmarks.deaths", "engine"),
        ("--workers=0,2", "--rounds=3"),
        ("--workers=0", "--rounds=1"),
        _engine_death,
    ),
    "front-death": Row(("benchmarks.deaths", "front"), ("--rounds=3",), ("--rounds=1",), _front_death),
    "start": Row(
        ("benchmarks.start",),
        ("--workers=0,2", "--rounds=5"),
        ("--workers=0", "--rounds=1"),
        _start,
        takes_beside=True,
    ),
}


def chosen(names: Sequence[str]) -> dict[str, Row]:
    """In the order of the table."""
    return {name: row for name, row in ROWS.items() if name in names}
