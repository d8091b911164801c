"""What can happen in a scenario, as data: one class for each `do`, whose fields are its keys.

Events happen in the order of the file. One without a time follows the one before it at once. `at` counts
seconds, and `after_tokens` all streams' tokens, from the end of the baseline; `after` counts seconds from the
end of the event before.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from chaos.strict_table import Table, bounded, from_table, required
from moe_model.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`do` is its name in files."""

    do: ClassVar[str] = ""
    at: float | None = bounded(None, 0.0, 7 * 86400)
    after: float | None = bounded(None, 0.0, 7 * 86400)
    after_tokens: int | None = bounded(None, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent(Event):
    """Something happens to one worker."""

    rank: int | Literal["random"] = bounded("random", 0, 1023)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(WorkerEvent):
    """SIGKILL."""

    do: ClassVar[str] = "kill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(WorkerEvent):
    """SIGSTOP, until a cont event or the end: the worker hangs."""

    do: ClassVar[str] = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cont(WorkerEvent):
    """SIGCONT."""

    do: ClassVar[str] = "cont"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(WorkerEvent):
    """Stopped for `seconds`, `times` times, with `pause` seconds between."""

    do: ClassVar[str] = "stall"
    seconds: float = bounded(0.5, 0.01, 3600)
    times: int = bounded(1, 1, 10_000)
    pause: float = bounded(0.2, 0.0, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(WorkerEvent):
    """For `seconds` it has only `share` of a core's time: a CPU quota, or SIGSTOP and SIGCONT in turns."""

    do: ClassVar[str] = "slow"
    share: float = bounded(0.05, 0.01, 0.95)
    seconds: float = bounded(10.0, 0.1, 86400)
    by: Literal["auto", "cgroup", "signals"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Oom(WorkerEvent):
    """Not a byte more than it has: the kernel kills it at its next page, within `timeout` seconds."""

    do: ClassVar[str] = "oom"
    timeout: float = bounded(30.0, 0.1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(Event):
    """Another number of workers, by the control service."""

    do: ClassVar[str] = "scale"
    workers: int = required(1, 1024)
    timeout: float = bounded(120.0, 0.1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace(Event):
    """Another version of an expert, by the control service; `path` is one of the server's machine."""

    do: ClassVar[str] = "replace"
    layer: int = bounded(0, 0)
    expert: int = bounded(0, 0)
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingRestart(Event):
    """Each worker in turn is killed, and the next when all is as before."""

    do: ClassVar[str] = "rolling-restart"
    timeout: float = bounded(60.0, 0.1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReady(Event):
    """All workers are there and each expert is held as often as before."""

    do: ClassVar[str] = "wait-ready"
    timeout: float = bounded(60.0, 0.1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exec(Event):
    """A command without a shell, for tests of our own; it must end well within `timeout` seconds."""

    do: ClassVar[str] = "exec"
    command: tuple[str, ...] = required()
    timeout: float = bounded(60.0, 0.1, 3600)


KINDS: dict[str, type[Event]] = {
    kind.do: kind
    for kind in (Kill, Stop, Cont, Stall, Slow, Oom, Scale, Replace, RollingRestart, WaitReady, Exec)
}


def event_from(table: Table, where: str, *, allow_exec: bool = False) -> Event:
    """Raises ConfigError."""
    do = table.get("do")
    if not isinstance(do, str) or do not in KINDS:
        raise ConfigError(f"{where}: do: {str(do)[:80]!r} is not one of {', '.join(KINDS)}")
    if do == Exec.do and not allow_exec:
        raise ConfigError(f"{where}: do: 'exec' is for tests only")
    values = {key: value for key, value in table.items() if key != "do"}
    event = from_table(KINDS[do], values, f"{where} ({do})")
    if sum(when is not None for when in (event.at, event.after, event.after_tokens)) > 1:
        raise ConfigError(f"{where} ({do}): at, after and after_tokens exclude each other")
    return event
