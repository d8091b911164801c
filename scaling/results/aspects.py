"""What cells of an experiment differ in, in words: labels of lines, rows and panels."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from scaling.cell import Cell, Host

MAX_LABEL = 70
T = TypeVar("T")


def _model(cell: Cell) -> str:
    return cell.model.rstrip("/").rpartition("/")[2].removesuffix(".json")


def _hosts(cell: Cell) -> str:
    if not cell.hosts:
        return "even hosts"
    return "hosts " + ":".join(map(_host, cell.hosts))


def _host(host: Host) -> str:
    cores = "-" if host.cores is None else f"{host.cores:g}"
    memory = "" if host.memory_mb is None else f", {host.memory_mb:g} MB"
    return cores + memory + ("" if host.link is None or host.link.is_plain else f" ({host.link})")


def _fault(cell: Cell) -> str:
    if cell.fault is None:
        return "no fault"
    share = f" to {cell.fault.share:g}" if cell.fault.kind == "slow" else ""
    lasts = "" if cell.fault.kind == "kill" else f" for {cell.fault.seconds:g} s"
    return f"{cell.fault.kind} worker {cell.fault.worker}{share} at {cell.fault.at_s:g} s{lasts}"


ASPECTS: dict[str, Callable[[Cell], str]] = {
    "model": _model,
    "dtype": lambda cell: cell.dtype,
    "layers": lambda cell: "all layers" if cell.layers is None else f"{cell.layers} layers",
    "workers": lambda cell: "1 worker" if cell.workers == 1 else f"{cell.workers} workers",
    "replicas": lambda cell: "1 copy" if cell.replicas == 1 else f"{cell.replicas} copies",
    "where": lambda cell: cell.where,
    "link": lambda cell: str(cell.link),
    "hosts": _hosts,
    "transport": lambda cell: cell.transport,
    "wire": lambda cell: f"{cell.wire_dtype} rows",
    "combine": lambda cell: f"{cell.combine} sums",
    "skew": lambda cell: str(cell.skew),
    "fault": _fault,
    "plan": lambda cell: "no plan" if cell.plan is None else f"plan {cell.plan}",
    "load": lambda cell: (
        f"{cell.load.rate:g}/s" if cell.load.rate is not None else f"{cell.load.concurrency or 'all'} at once"
    ),
    "lengths": lambda cell: cell.load.tokens,
    "trace": lambda cell: "no trace" if cell.load.trace is None else f"trace {cell.load.trace}",
    "requests": lambda cell: f"{cell.load.num_requests or 'default'} requests",
    "tool": lambda cell: f"sent by {cell.load.tool}",
    "serve": lambda cell: (
        msgspec.json.encode(cell.serve, order="deterministic").decode() if cell.serve else ""
    ),
}


def varying(cells: Iterable[Cell]) -> list[str]:
    """Names of ASPECTS that not all of these cells have in common."""
    seen = list(cells)
    return [name for name, of in ASPECTS.items() if len({of(cell) for cell in seen}) > 1]


def words(cell: Cell, names: Iterable[str]) -> str:
    """The named aspects of a cell; empty where none is named."""
    return shortened(", ".join(text for name in names if (text := ASPECTS[name](cell))))


def shortened(text: str) -> str:
    """What a drawing has room for, on one line; characters that no font draws become question marks."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= MAX_LABEL else line[: MAX_LABEL - 1] + "…"


def grouped(items: Sequence[T], of: Callable[[T], Cell], names: Sequence[str]) -> dict[str, list[T]]:
    """Items by what the named aspects of their cells say, in the order in which they come."""
    found: dict[str, list[T]] = {}
    for item in items:
        found.setdefault(", ".join(ASPECTS[name](of(item)) for name in names), []).append(item)
    return found
