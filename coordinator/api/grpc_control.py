"""ControlService on grpc.aio: operations as messages."""

from coordinator.api.errors import ApiError, Reason
from coordinator.api.gate import Gate
from coordinator.api.grpc_call import Context, rpc
from coordinator.api.grpc_methods import Behaviours
from coordinator.api.operations import Operations, WorkerState, WorkerView
from protos.expertmesh.v1 import control_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["ControlService"]

_STATES = {
    WorkerState.STARTING: pb.ExpertWorker.STATE_STARTING,
    WorkerState.READY: pb.ExpertWorker.STATE_READY,
    WorkerState.LOST: pb.ExpertWorker.STATE_LOST,
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
            facts = self._opened().facts
            await call.accept()
            return pb.GetServerInfoResponse(
                version=facts.version,
                instance_id=facts.instance_id,
                models=facts.models,
                expert_parallel_size=facts.num_workers,
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
            workers = sorted(self._opened().topology(), key=lambda worker: worker.rank)
            await call.accept()
            return pb.GetTopologyResponse(workers=[_worker(w, message.include_experts) for w in workers])

    async def abort(self, message: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        async with rpc("Abort", message, context, self._gate) as call:
            aborted, unknown = self._opened().abort(message.request_ids, everything=message.all)
            call.facts["aborted"] = len(aborted)
            await call.accept()
            return pb.AbortResponse(aborted_request_ids=aborted, unknown_request_ids=unknown)

    def _opened(self) -> Operations:
        if self._operations is None:
            raise ApiError.of(Reason.NOT_READY, "the server is starting")
        return self._operations


def behaviours(service: ControlService) -> Behaviours:
    """The methods by name, as grpc_methods.py takes them."""
    return {
        "GetServerInfo": service.get_server_info,
        "GetLoad": service.get_load,
        "GetTopology": service.get_topology,
        "Abort": service.abort,
    }


def _worker(view: WorkerView, include_experts: bool) -> pb.ExpertWorker:
    layers = sorted(view.experts.items()) if include_experts else ()
    return pb.ExpertWorker(
        rank=view.rank,
        node_id=view.node_id,
        device=view.device,
        state=_STATES[view.state],
        routed_tokens=view.routed_tokens,
        layers=[pb.ExpertWorker.LayerExperts(layer=layer, expert_ids=ids) for layer, ids in layers],
    )
