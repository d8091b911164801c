"""What `expertmesh top` shows, from two looks at a server. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from expertmesh.v1 import control_pb2 as pb

_STATES = {
    pb.ExpertWorker.STATE_STARTING: ("starting", "yellow"),
    pb.ExpertWorker.STATE_READY: ("ready", "green"),
    pb.ExpertWorker.STATE_INCOMPLETE: ("INCOMPLETE", "bold red"),
    pb.ExpertWorker.STATE_LOST: ("LOST", "bold red"),
    pb.ExpertWorker.STATE_DRAINING: ("draining", "yellow"),
    pb.ExpertWorker.STATE_BROKEN: ("BROKEN", "bold red"),
}
_BAR_WIDTH = 20
_DEVICE_WIDTH = 12
_MAX_EXPERT_LINES = 2
_COLUMNS = ("rank", "state", "device", "routed tokens", "tokens/s")
_TEXTS = ("state", "device")


@dataclass(frozen=True, slots=True)
class Look:
    """A server at one time (seconds, monotonic)."""

    at: float
    info: pb.GetServerInfoResponse
    load: pb.GetLoadResponse
    workers: tuple[pb.ExpertWorker, ...]


def rates(now: Look, before: Look | None) -> dict[int, float]:
    """Routed tokens per second of each worker; 0 where there is nothing to compare with."""
    old = {} if before is None else {worker.rank: worker.routed_tokens for worker in before.workers}
    seconds = 0.0 if before is None else now.at - before.at
    if seconds <= 0:
        return dict.fromkeys((worker.rank for worker in now.workers), 0.0)
    return {
        worker.rank: max(0, worker.routed_tokens - old.get(worker.rank, worker.routed_tokens)) / seconds
        for worker in now.workers
    }


def render(now: Look, before: Look | None, width: int) -> RenderableType:
    """The whole screen, `width` columns wide."""
    by_rank = rates(now, before)
    return Group(
        _head(now, sum(by_rank.values())), _workers(now.workers, by_rank, width), _experts(now.workers, width)
    )


def problem(address: str, message: str) -> RenderableType:
    return Text(f"{address}: {message}", style="bold red")


def as_json(now: Look, before: Look | None) -> dict[str, object]:
    """All that is known, for programs; `tokens_per_second` are 0 in the first look."""
    by_rank, load = rates(now, before), now.load
    return {
        "models": list(now.info.models),
        "version": now.info.version,
        "instance_id": now.info.instance_id,
        "running_requests": load.running_requests,
        "waiting_requests": load.waiting_requests,
        "kv_cache_usage": load.kv_cache_usage,
        "kv_cache_capacity_tokens": load.kv_cache_capacity_tokens,
        "tokens_per_second": sum(by_rank.values()),
        "workers": [
            {
                "rank": worker.rank,
                "state": _state(worker)[0].lower(),
                "device": worker.device,
                "hostname": worker.hostname,
                "host": worker.host,
                "node_id": worker.node_id,
                "pid": worker.pid,
                "weight_bytes": worker.weight_bytes,
                "routed_tokens": worker.routed_tokens,
                "tokens_per_second": by_rank[worker.rank],
                "losses": worker.losses,
                "last_loss": worker.last_loss,
                "problem": worker.problem,
                "experts": _by_layer(worker.layers),
                "missing": _by_layer(worker.missing),
            }
            for worker in now.workers
        ],
    }


def layers_text(worker: pb.ExpertWorker) -> str:
    """`every layer: 0-3,7`, or layers that hold the same together: `0-2: 0-3,7  3: 1`."""
    held: dict[str, list[int]] = {}
    for entry in sorted(worker.layers, key=lambda entry: entry.layer):
        held.setdefault(ranges(entry.expert_ids), []).append(entry.layer)
    if not held:
        return "-"
    if len(held) == 1:
        return f"every layer: {next(iter(held))}"
    return "  ".join(f"{ranges(layers)}: {ids}" for ids, layers in held.items())


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _by_layer(layers: Iterable[pb.ExpertWorker.LayerExperts]) -> dict[str, list[int]]:
    return {str(entry.layer): list(entry.expert_ids) for entry in layers}


def _state(worker: pb.ExpertWorker) -> tuple[str, str]:
    return _STATES.get(worker.state, ("unknown", "yellow"))


def _head(look: Look, rate: float) -> Table:
    load = look.load
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in (
        ("model", f"{', '.join(look.info.models)}   version {look.info.version}"),
        ("sequences", f"{load.running_requests} running, {load.waiting_requests} waiting"),
        ("kv cache", f"{_bar(load.kv_cache_usage)} of {load.kv_cache_capacity_tokens} tokens"),
        ("experts", f"{len(look.workers)} workers, {rate:,.0f} routed tokens/s"),
    ):
        grid.add_row(Text(name, style="dim"), Text(value))
    return grid


def _bar(share: float) -> str:
    full = round(min(1.0, max(0.0, share)) * _BAR_WIDTH)
    return f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}] {100 * share:5.1f} %"


def _workers(workers: Sequence[pb.ExpertWorker], by_rank: Mapping[int, float], width: int) -> Table:
    """A line each. What is left of the width is the machine's."""
    rows = [
        (
            str(worker.rank),
            _state(worker)[0],
            worker.device[:_DEVICE_WIDTH],
            f"{worker.routed_tokens:,}",
            f"{by_rank[worker.rank]:,.0f}",
        )
        for worker in workers
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=True)
    cells = zip(_COLUMNS, *rows, strict=True)
    room = width - sum(max(map(len, column)) + 2 for column in cells)
    table.add_column("machine", no_wrap=True, overflow="ellipsis")
    for worker, (rank, state, *others) in zip(workers, rows, strict=True):
        styled = Text(state, style=_state(worker)[1])
        table.add_row(rank, styled, *map(Text, others), Text(machine(worker, room)))
    return table


def machine(worker: pb.ExpertWorker, room: int) -> str:
    """Its name and its address, where there are both; in little room without the name's domain."""
    short = worker.hostname.partition(".")[0]
    choices = [
        " ".join(part for part in (name, worker.host) if part) or "-" for name in (worker.hostname, short)
    ]
    return next((text for text in choices if len(text) <= room), choices[-1])


def _experts(workers: Sequence[pb.ExpertWorker], width: int) -> RenderableType:
    """Which worker holds which experts, a few lines for each worker; further lines are only counted."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True, min_width=len("rank"))
    grid.add_column(overflow="fold")
    if workers:
        grid.add_row(Text("rank", style="dim"), Text("experts", style="dim"))
    for worker in workers:
        text = layers_text(worker)
        if len(text) > _MAX_EXPERT_LINES * max(1, width - len("rank") - 2):
            num = sum(len(entry.expert_ids) for entry in worker.layers)
            text = f"{num} in {len(worker.layers)} layers (--json has them all)"
        if worker.missing:
            text += f"  missing: {sum(len(entry.expert_ids) for entry in worker.missing)}"
        grid.add_row(str(worker.rank), Text(text))
    return grid
