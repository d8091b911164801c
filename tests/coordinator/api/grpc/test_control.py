"""The control service over a real port: what an operator says is what is done."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from coordinator.api.requests.gate import Backend
from coordinator.api.shared.operations import SCALE_TIMEOUT, Operations, ServerFacts
from expert_workers.status import Scaled, WorkerState, WorkerStatus
from expertmesh.v1 import control_pb2 as pb
from expertmesh.v1 import control_pb2_grpc
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import served_model
from tests.coordinator.fronts_fakes import FakeWorkers, World, make_fronts, opening

pytestmark = BOTH_ENGINES

WORKERS = (
    WorkerStatus(0, WorkerState.READY, "node", experts={0: (0, 1)}, routed_rows=7),
    WorkerStatus(1, WorkerState.INCOMPLETE, experts={0: (2,)}, missing={1: (3,)}, problem="bad file"),
    WorkerStatus(2, WorkerState.DRAINING),
)


class Scaling(FakeWorkers):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__(WORKERS)
        self.told: list[tuple[int, float]] = []

    def scale(self, num_workers: int, timeout: float) -> Scaled:
        self.told.append((num_workers, timeout))
        return Scaled(1, num_workers, 0, 0.0)


@asynccontextmanager
async def control(scaling: FakeWorkers) -> AsyncIterator[Any]:
    fronts = make_fronts()
    async with opening(fronts, workers=scaling) as engine:
        facts = ServerFacts("1", "an instance", ("tiny",), 1024)
        operations = Operations(facts, engine)
        fronts.serve(Backend(served_model(), engine), operations)
        await fronts.open(World().sources)
        assert fronts.control is not None
        async with grpc.aio.insecure_channel(fronts.control.address) as channel:
            yield control_pb2_grpc.ControlServiceStub(channel)  # type: ignore[no-untyped-call]


async def test_who_waits_for_a_change_of_the_workers_says_how_long() -> None:
    scaling = Scaling()
    async with control(scaling) as stub:
        await stub.Scale(pb.ScaleRequest(num_workers=3), timeout=5000)
        await stub.Scale(pb.ScaleRequest(num_workers=4))
    (three, long), (four, usual) = scaling.told
    assert (three, four, usual) == (3, 4, SCALE_TIMEOUT)
    # gRPC rounds a deadline on its way.
    assert 4000 < long < 5020


@pytest.mark.parametrize("include_experts", [False, True])
async def test_the_topology_says_what_a_worker_lacks_and_why(include_experts: bool) -> None:
    async with control(Scaling()) as stub:
        response = await stub.GetTopology(pb.GetTopologyRequest(include_experts=include_experts))
    ready, incomplete, draining = response.workers
    assert [len(worker.layers) for worker in response.workers] == (
        [1, 1, 0] if include_experts else [0, 0, 0]
    )
    assert ready.state == pb.ExpertWorker.STATE_READY
    assert not ready.missing
    assert incomplete.state == pb.ExpertWorker.STATE_INCOMPLETE
    assert [(entry.layer, list(entry.expert_ids)) for entry in incomplete.missing] == [(1, [3])]
    assert incomplete.problem == "bad file"
    assert draining.state == pb.ExpertWorker.STATE_DRAINING


async def test_workers_are_not_scaled_where_there_are_none() -> None:
    async with control(FakeWorkers()) as stub:
        topology = await stub.GetTopology(pb.GetTopologyRequest())
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Scale(pb.ScaleRequest(num_workers=2))
    assert not topology.workers
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.value.details() == "this server's experts run in the coordinator"


async def test_the_number_of_workers_is_the_one_that_there_is() -> None:
    async with control(Scaling()) as stub:
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.expert_parallel_size == 2, "one of the three is leaving"
