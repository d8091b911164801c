"""ControlClient: a running server from its operator's side, over ControlService.

with ControlClient("127.0.0.1:50052") as control:
    print(control.load().running_requests)
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from expertmesh.calls import Calls
from expertmesh.connection import Connection
from expertmesh.v1 import control_pb2 as pb
from expertmesh.v1 import control_pb2_grpc

DEFAULT_TIMEOUT = 10.0
# For what loads files, and waits for a step to end.
CHANGE_TIMEOUT = 120.0


class ControlClient:
    """Blocking. Every call ends within its timeout and a second or raises ClientError; none is sent twice."""

    def __init__(
        self, address: str, *, timeout: float = DEFAULT_TIMEOUT, connection: Connection | None = None
    ) -> None:
        """Raises ConfigError for an address or a file that cannot be used."""
        self.address = address
        self._timeout = timeout
        self._calls = Calls(address, timeout, connection)
        self._stub: Any = control_pb2_grpc.ControlServiceStub(self._calls.channel)  # type: ignore[no-untyped-call]

    def server_info(self) -> pb.GetServerInfoResponse:
        response: pb.GetServerInfoResponse = self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest())
        return response

    def load(self) -> pb.GetLoadResponse:
        response: pb.GetLoadResponse = self._call(self._stub.GetLoad, pb.GetLoadRequest())
        return response

    def topology(self, *, include_experts: bool = False) -> Sequence[pb.ExpertWorker]:
        request = pb.GetTopologyRequest(include_experts=include_experts)
        return tuple(self._call(self._stub.GetTopology, request).workers)

    def abort(
        self, request_ids: Sequence[str] = (), *, everything: bool = False
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ends requests; returns the ids of those that ran and of those that did not."""
        response = self._call(self._stub.Abort, pb.AbortRequest(request_ids=request_ids, all=everything))
        return tuple(response.aborted_request_ids), tuple(response.unknown_request_ids)

    def scale(self, num_workers: int, *, timeout: float) -> pb.ScaleResponse:
        """Returns when there are so many workers; after `timeout` seconds the server goes on without us."""
        request = pb.ScaleRequest(num_workers=num_workers)
        response: pb.ScaleResponse = self._call(self._stub.Scale, request, timeout)
        return response

    def experts(self) -> Sequence[pb.ExpertModule]:
        """Ordered by layer, expert and version."""
        return tuple(self._call(self._stub.ListExperts, pb.ListExpertsRequest()).experts)

    def replace_expert(
        self, layer: int, expert_id: int, path: str, *, sha256: str | None = None
    ) -> pb.ReplaceExpertResponse:
        """Blocks until new requests use the module in the file, whose path is one of the server's machine."""
        request = pb.ReplaceExpertRequest(layer=layer, expert_id=expert_id, path=path, sha256=sha256)
        response: pb.ReplaceExpertResponse = self._change(self._stub.ReplaceExpert, request)
        return response

    def add_expert(
        self, layer: int, path: str, router_path: str, *, sha256: str | None = None
    ) -> pb.AddExpertResponse:
        """Blocks until new requests use the module and its row of the router."""
        request = pb.AddExpertRequest(layer=layer, path=path, sha256=sha256, router_path=router_path)
        response: pb.AddExpertResponse = self._change(self._stub.AddExpert, request)
        return response

    def remove_expert(self, layer: int, expert_id: int) -> pb.RemoveExpertResponse:
        """Blocks until new requests do without the expert."""
        request = pb.RemoveExpertRequest(layer=layer, expert_id=expert_id)
        response: pb.RemoveExpertResponse = self._change(self._stub.RemoveExpert, request)
        return response

    def close(self) -> None:
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _change(self, method: Any, request: Any) -> Any:
        return self._call(method, request, max(self._timeout, CHANGE_TIMEOUT))

    def _call(self, method: Any, request: Any, timeout: float | None = None) -> Any:
        return self._calls.unary(method, request, timeout, retries=False)
