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
    __slots__ = ("rank", "node_id", "device", "state", "routed_tokens", "layers")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ExpertWorker.State]
        STATE_STARTING: _ClassVar[ExpertWorker.State]
        STATE_READY: _ClassVar[ExpertWorker.State]
        STATE_LOST: _ClassVar[ExpertWorker.State]
    STATE_UNSPECIFIED: ExpertWorker.State
    STATE_STARTING: ExpertWorker.State
    STATE_READY: ExpertWorker.State
    STATE_LOST: ExpertWorker.State
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
    rank: int
    node_id: str
    device: str
    state: ExpertWorker.State
    routed_tokens: int
    layers: _containers.RepeatedCompositeFieldContainer[ExpertWorker.LayerExperts]
    def __init__(self, rank: _Optional[int] = ..., node_id: _Optional[str] = ..., device: _Optional[str] = ..., state: _Optional[_Union[ExpertWorker.State, str]] = ..., routed_tokens: _Optional[int] = ..., layers: _Optional[_Iterable[_Union[ExpertWorker.LayerExperts, _Mapping]]] = ...) -> None: ...

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
