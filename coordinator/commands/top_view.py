"""What `expertmesh top` shows, from two looks at a server. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from protos.expertmesh.v1 import control_pb2 as pb

_STATES = {
    pb.ExpertWorker.STATE_STARTING: ("starting", "yellow"),
    pb.ExpertWorker.STATE_READY: ("ready", "green"),
    pb.ExpertWorker.STATE_INCOMPLETE: ("INCOMPLETE", "bold red"),
    pb.ExpertWorker.STATE_LOST: ("LOST", "bold red"),
    pb.ExpertWorker.STATE_DRAINING: ("draining", "yellow"),
    pb.ExpertWorker.STATE_BROKEN: ("BROKEN", "bold red"),
}
_BAR_WIDTH = 20


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


def render(now: Look, before: Look | None) -> RenderableType:
    """The whole screen."""
    by_rank = rates(now, before)
    return Group(_head(now, sum(by_rank.values())), _workers(now.workers, by_rank))


def problem(address: str, message: str) -> RenderableType:
    return Text(f"{address}: {message}", style="bold red")


def layers_text(worker: pb.ExpertWorker) -> str:
    """`all: 0,1` where every layer is the same, otherwise layer by layer."""
    layers = {entry.layer: ",".join(map(str, entry.expert_ids)) for entry in worker.layers}
    if not layers:
        return "-"
    if len(set(layers.values())) == 1:
        return f"every layer: {next(iter(layers.values()))}"
    return "  ".join(f"{layer}: {ids}" for layer, ids in sorted(layers.items()))


def _head(look: Look, rate: float) -> Table:
    load = look.load
    grid = Table.grid(padding=(0, 2))
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


def _workers(workers: Sequence[pb.ExpertWorker], by_rank: Mapping[int, float]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("rank", "state", "device", "node"):
        table.add_column(name)
    for name in ("routed tokens", "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("experts", overflow="fold")
    for worker in workers:
        state, style = _STATES.get(worker.state, ("unknown", "yellow"))
        table.add_row(
            str(worker.rank),
            Text(state, style=style),
            Text(worker.device),
            Text(worker.node_id[:12] or "-"),
            f"{worker.routed_tokens:,}",
            f"{by_rank[worker.rank]:,.0f}",
            Text(layers_text(worker)),
        )
    return table
