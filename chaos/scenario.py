"""A scenario: what must be there, which load runs, what happens to the workers meanwhile, what must hold.

Read from TOML, strictly. docs/chaos.md describes every key.
"""

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from chaos.events import Event, Replace, event_from
from chaos.strict_table import Table, bounded, from_table, sub_table, sub_tables
from moe_model.errors import ConfigError

SCENARIOS = Path(__file__).parent / "scenarios"
MAX_BYTES = 1 << 20

SoakFault = Literal["kill", "stop", "stall", "slow"]
_TABLES = ("setup", "load", "soak", "expect", "event")


@dataclass(frozen=True, slots=True)
class Setup:
    """What the server must have before anything happens. None: whatever it has. `replicas` are the holders of
    the expert that has the fewest."""

    workers: int | None = bounded(None, 1)
    replicas: int | None = bounded(None, 1)
    max_replicas: int | None = bounded(None, 1)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """`requests` different requests, sent again and again.

    Closed: each of `streams` clients sends its next request when the last has ended. Open: `rate` requests a
    second, whatever comes back. A prompt's `{number}` becomes the request's. Of "mixed" sampling every second
    request is greedy; the others, like those of "seeded", have the seed `seed` + number.
    """

    loop: Literal["closed", "open"] = "closed"
    streams: int = bounded(16, 1, 1024)
    rate: float = bounded(4.0, 0.01, 10_000)
    requests: int = bounded(16, 1, 4096)
    tokens: int = bounded(64, 1, 65536)
    prompts: tuple[str, ...] = ("def function_{number}(self, value):",)
    sampling: Literal["greedy", "seeded", "mixed"] = "mixed"
    temperature: float = bounded(0.8, 0.01, 2.0)
    seed: int = bounded(0, 0, 2**31)
    timeout: float = bounded(60.0, 0.1, 86400)


@dataclass(frozen=True, slots=True)
class Soak:
    """Random faults, one after the other, until the duration is over; between a recovery and the next fault
    are `pause` seconds, drawn from [low, high]."""

    faults: tuple[SoakFault, ...] = ("kill", "stop", "stall", "slow")
    pause: tuple[float, float] = bounded((2.0, 6.0), 0.0, 3600)


@dataclass(frozen=True, slots=True)
class Expect:
    """What must hold. None: reported only. The invariants of histories hold always.

    `statuses` are those that lost requests may end with; none: any. `max_gap` is between two tokens of a
    stream, or its last and its failure; `max_gap_added` is by how much the longest one exceeds the p99
    outside the faults; `max_p99_ratio` compares the p99 during and outside them; `..._worker_losses` bound
    how often the server gave a worker up. Times are seconds.
    """

    max_lost: int | Literal["any"] = bounded(0, 0)
    max_changed: int = bounded(0, 0)
    max_refused: int | Literal["any"] = bounded(0, 0)
    statuses: tuple[str, ...] = ()
    max_gap: float | None = bounded(None, 0)
    max_gap_added: float | None = bounded(None, 0)
    max_p99_ratio: float | None = bounded(None, 0)
    max_worker_losses: int | None = bounded(None, 0)
    min_worker_losses: int = bounded(0, 0)
    restored_within: float = bounded(30.0, 0, 3600)
    idle_within: float = bounded(10.0, 0, 3600)


@dataclass(frozen=True, slots=True)
class Course:
    """`baseline` seconds of load without a fault come first; `settle` seconds follow the last recovery; all
    the load lasts `duration` seconds at least. `seed` is that of random choices."""

    about: str = ""
    baseline: float = bounded(3.0, 0.1, 3600)
    settle: float = bounded(2.0, 0.0, 3600)
    duration: float = bounded(0.0, 0.0, 7 * 86400)
    seed: int = bounded(0, 0, 2**31)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Either `events` or `soak`."""

    name: str
    course: Course = field(default_factory=Course)
    setup: Setup = field(default_factory=Setup)
    load: LoadSpec = field(default_factory=LoadSpec)
    events: tuple[Event, ...] = ()
    soak: Soak | None = None
    expect: Expect = field(default_factory=Expect)


def names() -> list[str]:
    """Of the scenarios that come with this package."""
    return sorted(path.stem for path in SCENARIOS.glob("*.toml"))


def find(text: str, *, allow_exec: bool = False) -> Scenario:
    """By name or by path; a path has a slash or ends in .toml. Raises ConfigError."""
    is_path = "/" in text or text.endswith(".toml")
    path = Path(text) if is_path else SCENARIOS / f"{text}.toml"
    if not is_path and text not in names():
        raise ConfigError(f"--scenario: {text[:80]!r} is neither a file nor one of {', '.join(names())}")
    return load(path, allow_exec=allow_exec)


def load(path: Path, *, allow_exec: bool = False) -> Scenario:
    """Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: has more than {MAX_BYTES} bytes")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {str(error)[:200]}") from None
    return parse(table, path.stem, str(path), allow_exec=allow_exec)


def parse(table: Table, name: str, where: str, *, allow_exec: bool = False) -> Scenario:
    """`where` begins every error. `exec` events, which run commands, are for tests. Raises ConfigError."""
    unknown = [key for key, value in table.items() if isinstance(value, dict) and key not in _TABLES]
    if unknown:
        raise ConfigError(f"{where}: there is no table [{unknown[0][:80]}] ({', '.join(_TABLES)})")
    events = tuple(
        event_from(each, f"{where}: event {number}", allow_exec=allow_exec)
        for number, each in enumerate(sub_tables(table, "event", where), 1)
    )
    soak = from_table(Soak, sub_table(table, "soak", where), f"{where}: soak") if "soak" in table else None
    scenario = Scenario(
        name=name,
        course=from_table(Course, {key: table[key] for key in table if key not in _TABLES}, where),
        setup=from_table(Setup, sub_table(table, "setup", where), f"{where}: setup"),
        load=from_table(LoadSpec, sub_table(table, "load", where), f"{where}: load"),
        events=events,
        soak=soak,
        expect=from_table(Expect, sub_table(table, "expect", where), f"{where}: expect"),
    )
    _check(scenario, where)
    return scenario


def _check(scenario: Scenario, where: str) -> None:
    if bool(scenario.events) == bool(scenario.soak):
        raise ConfigError(f"{where}: needs either [[event]] or [soak]")
    if sum(event.do == "replace" for event in scenario.events) > 1:
        raise ConfigError(f"{where}: more than one replace event: what is right in between would be unknown")
    if scenario.soak is not None and scenario.soak.pause[0] > scenario.soak.pause[1]:
        raise ConfigError(f"{where}: soak: pause: the lower bound comes first")


def changed(
    scenario: Scenario,
    *,
    duration: float | None = None,
    seed: int | None = None,
    streams: int | None = None,
    expert_file: str | None = None,
) -> Scenario:
    """With what the command line says otherwise. None: as it is. Raises ConfigError."""
    course, load = scenario.course, scenario.load
    if streams is not None:
        load = replace(load, streams=streams)
    if seed is not None:
        course, load = replace(course, seed=seed), replace(load, seed=seed)
    if duration is not None:
        course = replace(course, duration=duration)
    if scenario.soak is not None and course.duration <= course.baseline + course.settle:
        raise ConfigError("duration: a soak needs more than its baseline and settle together")
    return replace(scenario, course=course, load=load, events=_with_files(scenario.events, expert_file))


def _with_files(events: tuple[Event, ...], expert_file: str | None) -> tuple[Event, ...]:
    """`expert_file` where an exchange names none."""
    found = tuple(
        replace(event, path=expert_file or "") if isinstance(event, Replace) and not event.path else event
        for event in events
    )
    if any(isinstance(event, Replace) and not event.path for event in found):
        raise ConfigError("the scenario exchanges an expert for that of a file: --expert-file names it")
    return found
