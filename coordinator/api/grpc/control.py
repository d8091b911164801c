"""ControlService on grpc.aio: operations as messages."""

import asyncio
from collections.abc import Mapping, Sequence

from coordinator.api.grpc.call import Context, rpc
from coordinator.api.grpc.methods import Behaviours
from coordinator.api.requests.gate import Gate
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.operations import Operations
from coordinator.engine.messages.commands import ExpertView
from expert_workers.status import WorkerState, WorkerStatus
from expertmesh.v1 import control_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["ControlService"]

_STATES = {
    WorkerState.STARTING: pb.ExpertWorker.STATE_STARTING,
    WorkerState.READY: pb.ExpertWorker.STATE_READY,
    WorkerState.INCOMPLETE: pb.ExpertWorker.STATE_INCOMPLETE,
    WorkerState.LOST: pb.ExpertWorker.STATE_LOST,
    WorkerState.DRAINING: pb.ExpertWorker.STATE_DRAINING,
    WorkerState.BROKEN: pb.ExpertWorker.STATE_BROKEN,
}


class ControlService:
    """One method per RPC. Answers while the server drains; before it is up, NOT_READY."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._operations: Operations | None = None

    def open(self, operations: Operations) -> None:
        self._operations = operations

    async def get_server_info(
        self, message: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        async with rpc("GetServerInfo", message, context, self._gate) as call:
            operations = self._opened()
            facts = operations.facts
            await call.accept()
            return pb.GetServerInfoResponse(
                version=facts.version,
                instance_id=facts.instance_id,
                models=facts.models,
                expert_parallel_size=operations.num_workers,
            )

    async def get_load(self, message: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        async with rpc("GetLoad", message, context, self._gate) as call:
            load = self._opened().load()
            await call.accept()
            return pb.GetLoadResponse(
                running_requests=load.num_running,
                waiting_requests=load.num_waiting,
                kv_cache_usage=load.kv_usage,
                kv_cache_capacity_tokens=load.kv_capacity_tokens,
            )

    async def get_topology(self, message: pb.GetTopologyRequest, context: Context) -> pb.GetTopologyResponse:
        async with rpc("GetTopology", message, context, self._gate) as call:
            workers = await self._opened().topology()
            await call.accept()
            return pb.GetTopologyResponse(workers=[_worker(w, message.include_experts) for w in workers])

    async def abort(self, message: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        async with rpc("Abort", message, context, self._gate) as call:
            aborted, unknown = await self._opened().abort(message.request_ids, everything=message.all)
            call.facts["aborted"] = len(aborted)
            await call.accept()
            return pb.AbortResponse(aborted_request_ids=aborted, unknown_request_ids=unknown)

    async def scale(self, message: pb.ScaleRequest, context: Context) -> pb.ScaleResponse:
        async with rpc("Scale", message, context, self._gate) as call:
            deadline = context.time_remaining()
            result = await asyncio.to_thread(self._opened().scale, message.num_workers, deadline)
            await call.accept()
            return pb.ScaleResponse(
                num_workers_before=result.num_before,
                num_workers=result.num_workers,
                modules_moved=result.num_moved,
                seconds=result.seconds,
            )

    async def list_experts(self, message: pb.ListExpertsRequest, context: Context) -> pb.ListExpertsResponse:
        async with rpc("ListExperts", message, context, self._gate) as call:
            views = await asyncio.to_thread(self._opened().list_experts)
            await call.accept()
            return pb.ListExpertsResponse(experts=map(_expert, views))

    async def replace_expert(
        self, message: pb.ReplaceExpertRequest, context: Context
    ) -> pb.ReplaceExpertResponse:
        async with rpc("ReplaceExpert", message, context, self._gate) as call:
            arguments = (message.layer, message.expert_id, message.path, _sha256(message))
            changed = await asyncio.to_thread(self._opened().replace_expert, *arguments)
            await call.accept()
            return pb.ReplaceExpertResponse(expert=_expert(changed.expert), seconds=changed.seconds)

    async def add_expert(self, message: pb.AddExpertRequest, context: Context) -> pb.AddExpertResponse:
        async with rpc("AddExpert", message, context, self._gate) as call:
            arguments = (message.layer, message.path, _sha256(message), message.router_path)
            changed = await asyncio.to_thread(self._opened().add_expert, *arguments)
            await call.accept()
            return pb.AddExpertResponse(expert=_expert(changed.expert), seconds=changed.seconds)

    async def remove_expert(
        self, message: pb.RemoveExpertRequest, context: Context
    ) -> pb.RemoveExpertResponse:
        async with rpc("RemoveExpert", message, context, self._gate) as call:
            arguments = (message.layer, message.expert_id)
            changed = await asyncio.to_thread(self._opened().remove_expert, *arguments)
            await call.accept()
            return pb.RemoveExpertResponse(expert=_expert(changed.expert), seconds=changed.seconds)

    def _opened(self) -> Operations:
        if self._operations is None:
            raise ApiError.of(Reason.NOT_READY, "the server is starting")
        return self._operations


def behaviours(service: ControlService) -> Behaviours:
    """The methods by name, as methods.py takes them."""
    return {
        "GetServerInfo": service.get_server_info,
        "GetLoad": service.get_load,
        "GetTopology": service.get_topology,
        "Abort": service.abort,
        "Scale": service.scale,
        "ListExperts": service.list_experts,
        "ReplaceExpert": service.replace_expert,
        "AddExpert": service.add_expert,
        "RemoveExpert": service.remove_expert,
    }


def _sha256(message: pb.ReplaceExpertRequest | pb.AddExpertRequest) -> str | None:
    return message.sha256 if message.HasField("sha256") else None


def _expert(view: ExpertView) -> pb.ExpertModule:
    return pb.ExpertModule(
        layer=view.module.layer,
        expert_id=view.module.expert,
        version=view.module.version,
        sha256=view.sha256,
        worker_ranks=view.ranks,
        retiring=view.is_retiring,
        missing=view.is_missing,
    )


def _worker(worker: WorkerStatus, include_experts: bool) -> pb.ExpertWorker:
    """The one place that fills the message."""
    return pb.ExpertWorker(
        rank=worker.rank,
        node_id=worker.node_id,
        device=worker.device,
        state=_STATES[worker.state],
        routed_tokens=worker.routed_rows,
        layers=_layers(worker.experts if include_experts else {}),
        pid=worker.pid,
        host=worker.host,
        hostname=worker.hostname,
        weight_bytes=worker.num_bytes,
        losses=worker.num_losses,
        last_loss=worker.last_loss,
        missing=_layers(worker.missing),
        problem=worker.problem,
    )


def _layers(experts: Mapping[int, Sequence[int]]) -> list[pb.ExpertWorker.LayerExperts]:
    return [pb.ExpertWorker.LayerExperts(layer=n, expert_ids=ids) for n, ids in sorted(experts.items())]
