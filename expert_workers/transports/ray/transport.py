"""RayTransport: one Ray actor call per worker and dispatch."""

from dataclasses import dataclass
from typing import ClassVar

import ray

from expert_workers.transports.base import (
    NO_OPTIONS,
    Failure,
    FailureReason,
    Site,
    TransportOptions,
    WorkerFailureError,
)
from expert_workers.transports.ray.links import ActorName, RayLink, RayPlane
from expert_workers.worker.expert_worker import ExpertWorker


@dataclass(frozen=True, slots=True)
class ServedActor:
    """A Served: the actor of this process, which answers Ray's calls anyway."""

    endpoint: ActorName
    num_links: ClassVar[None] = None

    def close(self) -> None:
        """It ends with its actor."""


@dataclass(frozen=True, slots=True)
class RayTransport:
    """A Transport. Its workers are ExpertActors, whose `compute` the links call."""

    options: TransportOptions = NO_OPTIONS
    spans_processes: ClassVar[bool] = True
    certificate_end: ClassVar[float | None] = None

    def serve(self, worker: ExpertWorker, site: Site) -> ServedActor:
        assert isinstance(site.process, ActorName), "its process is an actor"
        return ServedActor(site.process)

    def connect(self, rank: int, endpoint: ActorName, timeout: float) -> RayLink:
        try:
            return RayLink(rank, ray.get_actor(endpoint.name, namespace=endpoint.namespace))
        except ValueError:
            message = f"worker {rank}: no Ray actor {endpoint.name!r} in {endpoint.namespace!r}"
            raise WorkerFailureError(Failure(FailureReason.DIED, message)) from None

    def plane(self) -> RayPlane:
        return RayPlane()
