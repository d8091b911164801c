from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "instance_id", "models", "expert_parallel_size")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_PARALLEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    version: str
    instance_id: str
    models: _containers.RepeatedScalarFieldContainer[str]
    expert_parallel_size: int
    def __init__(self, version: _Optional[str] = ..., instance_id: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., expert_parallel_size: _Optional[int] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("running_requests", "waiting_requests", "kv_cache_usage", "kv_cache_capacity_tokens")
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    running_requests: int
    waiting_requests: int
    kv_cache_usage: float
    kv_cache_capacity_tokens: int
    def __init__(self, running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., kv_cache_usage: _Optional[float] = ..., kv_cache_capacity_tokens: _Optional[int] = ...) -> None: ...

class GetTopologyRequest(_message.Message):
    __slots__ = ("include_experts",)
    INCLUDE_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    include_experts: bool
    def __init__(self, include_experts: bool = ...) -> None: ...

class GetTopologyResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[ExpertWorker]
    def __init__(self, workers: _Optional[_Iterable[_Union[ExpertWorker, _Mapping]]] = ...) -> None: ...

class ExpertWorker(_message.Message):
    __slots__ = ("rank", "node_id", "device", "state", "routed_tokens", "layers", "pid", "host", "weight_bytes", "losses", "last_loss", "missing", "problem", "hostname")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ExpertWorker.State]
        STATE_STARTING: _ClassVar[ExpertWorker.State]
        STATE_READY: _ClassVar[ExpertWorker.State]
        STATE_LOST: _ClassVar[ExpertWorker.State]
        STATE_DRAINING: _ClassVar[ExpertWorker.State]
        STATE_BROKEN: _ClassVar[ExpertWorker.State]
        STATE_INCOMPLETE: _ClassVar[ExpertWorker.State]
    STATE_UNSPECIFIED: ExpertWorker.State
    STATE_STARTING: ExpertWorker.State
    STATE_READY: ExpertWorker.State
    STATE_LOST: ExpertWorker.State
    STATE_DRAINING: ExpertWorker.State
    STATE_BROKEN: ExpertWorker.State
    STATE_INCOMPLETE: ExpertWorker.State
    class LayerExperts(_message.Message):
        __slots__ = ("layer", "expert_ids")
        LAYER_FIELD_NUMBER: _ClassVar[int]
        EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
        layer: int
        expert_ids: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, layer: _Optional[int] = ..., expert_ids: _Optional[_Iterable[int]] = ...) -> None: ...
    RANK_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    LAST_LOSS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    rank: int
    node_id: str
    device: str
    state: ExpertWorker.State
    routed_tokens: int
    layers: _containers.RepeatedCompositeFieldContainer[ExpertWorker.LayerExperts]
    pid: int
    host: str
    weight_bytes: int
    losses: int
    last_loss: str
    missing: _containers.RepeatedCompositeFieldContainer[ExpertWorker.LayerExperts]
    problem: str
    hostname: str
    def __init__(self, rank: _Optional[int] = ..., node_id: _Optional[str] = ..., device: _Optional[str] = ..., state: _Optional[_Union[ExpertWorker.State, str]] = ..., routed_tokens: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[ExpertWorker.LayerExperts, _Mapping]]] = ..., pid: _Optional[int] = ..., host: _Optional[str] = ..., weight_bytes: _Optional[int] = ..., losses: _Optional[int] = ..., last_loss: _Optional[str] = ..., missing: _Optional[_Iterable[_Union[ExpertWorker.LayerExperts, _Mapping]]] = ..., problem: _Optional[str] = ..., hostname: _Optional[str] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_ids", "all")
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ..., all: bool = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("aborted_request_ids", "unknown_request_ids")
    ABORTED_REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    aborted_request_ids: _containers.RepeatedScalarFieldContainer[str]
    unknown_request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, aborted_request_ids: _Optional[_Iterable[str]] = ..., unknown_request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("num_workers",)
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    num_workers: int
    def __init__(self, num_workers: _Optional[int] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("num_workers_before", "num_workers", "modules_moved", "seconds")
    NUM_WORKERS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    MODULES_MOVED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    num_workers_before: int
    num_workers: int
    modules_moved: int
    seconds: float
    def __init__(self, num_workers_before: _Optional[int] = ..., num_workers: _Optional[int] = ..., modules_moved: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ExpertModule(_message.Message):
    __slots__ = ("layer", "expert_id", "version", "sha256", "worker_ranks", "retiring", "missing")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    WORKER_RANKS_FIELD_NUMBER: _ClassVar[int]
    RETIRING_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert_id: int
    version: int
    sha256: str
    worker_ranks: _containers.RepeatedScalarFieldContainer[int]
    retiring: bool
    missing: bool
    def __init__(self, layer: _Optional[int] = ..., expert_id: _Optional[int] = ..., version: _Optional[int] = ..., sha256: _Optional[str] = ..., worker_ranks: _Optional[_Iterable[int]] = ..., retiring: bool = ..., missing: bool = ...) -> None: ...

class ListExpertsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListExpertsResponse(_message.Message):
    __slots__ = ("experts",)
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    experts: _containers.RepeatedCompositeFieldContainer[ExpertModule]
    def __init__(self, experts: _Optional[_Iterable[_Union[ExpertModule, _Mapping]]] = ...) -> None: ...

class ReplaceExpertRequest(_message.Message):
    __slots__ = ("layer", "expert_id", "path", "sha256")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert_id: int
    path: str
    sha256: str
    def __init__(self, layer: _Optional[int] = ..., expert_id: _Optional[int] = ..., path: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class ReplaceExpertResponse(_message.Message):
    __slots__ = ("expert", "seconds")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    expert: ExpertModule
    seconds: float
    def __init__(self, expert: _Optional[_Union[ExpertModule, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...

class AddExpertRequest(_message.Message):
    __slots__ = ("layer", "path", "sha256", "router_path")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ROUTER_PATH_FIELD_NUMBER: _ClassVar[int]
    layer: int
    path: str
    sha256: str
    router_path: str
    def __init__(self, layer: _Optional[int] = ..., path: _Optional[str] = ..., sha256: _Optional[str] = ..., router_path: _Optional[str] = ...) -> None: ...

class AddExpertResponse(_message.Message):
    __slots__ = ("expert", "seconds")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    expert: ExpertModule
    seconds: float
    def __init__(self, expert: _Optional[_Union[ExpertModule, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...

class RemoveExpertRequest(_message.Message):
    __slots__ = ("layer", "expert_id")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ID_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert_id: int
    def __init__(self, layer: _Optional[int] = ..., expert_id: _Optional[int] = ...) -> None: ...

class RemoveExpertResponse(_message.Message):
    __slots__ = ("expert", "seconds")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    expert: ExpertModule
    seconds: float
    def __init__(self, expert: _Optional[_Union[ExpertModule, _Mapping]] = ..., seconds: _Optional[float] = ...) -> None: ...
