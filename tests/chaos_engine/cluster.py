"""A cluster of workers that exist only as messages, and what a stage needs beside it."""

import os
from collections.abc import Sequence

from expertmesh import ClientError
from expertmesh.v1 import control_pb2 as pb

READY, LOST = pb.ExpertWorker.STATE_READY, pb.ExpertWorker.STATE_LOST


def worker(
    rank: int,
    experts: Sequence[int] = (0, 1),
    state: "pb.ExpertWorker.State" = READY,
    *,
    pid: int | None = None,
    losses: int = 0,
    host: str = "127.0.0.1",
) -> pb.ExpertWorker:
    """By default its process is this one, which runs."""
    return pb.ExpertWorker(
        rank=rank,
        state=state,
        pid=os.getpid() if pid is None else pid,
        host=host,
        losses=losses,
        layers=[pb.ExpertWorker.LayerExperts(layer=0, expert_ids=experts)],
    )


class Cluster:
    """What ControlClient has of it."""

    def __init__(self, *workers: pb.ExpertWorker) -> None:
        self.workers = list(workers)
        self.is_away = False
        self.replaced: list[tuple[int, int, str]] = []

    def topology(self, *, include_experts: bool = False) -> Sequence[pb.ExpertWorker]:
        if self.is_away:
            raise ClientError("UNAVAILABLE", "away")
        return tuple(self.workers)

    def scale(self, num_workers: int, *, timeout: float) -> pb.ScaleResponse:
        before = len(self.workers)
        self.workers = [worker(rank) for rank in range(num_workers)]
        return pb.ScaleResponse(num_workers_before=before, num_workers=num_workers, modules_moved=2)

    def replace_expert(self, layer: int, expert_id: int, path: str) -> pb.ReplaceExpertResponse:
        self.replaced.append((layer, expert_id, path))
        return pb.ReplaceExpertResponse(expert=pb.ExpertModule(layer=layer, expert_id=expert_id, version=1))


class FakeLoad:
    """Its time passes at once."""

    def __init__(self) -> None:
        self.num_tokens = 100
        self.waits: list[float] = []
        self.token_waits: list[int] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def wait_tokens(self, count: int) -> None:
        self.token_waits.append(count)
