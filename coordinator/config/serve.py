"""A whole server, as `expertmesh serve` is told of it."""

from dataclasses import dataclass, field
from typing import Annotated

from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.config.observability import ObservabilityConfig
from coordinator.config.plan import PlanConfig
from coordinator.config.routing import RoutingConfig
from coordinator.config.security import SecurityConfig
from coordinator.config.service import (
    Addresses,
    AdmissionConfig,
    CallsConfig,
    ProcessesConfig,
    ReadinessConfig,
)
from coordinator.config.workers import WorkersConfig
from expertmesh.commands.options import Group, Option

_SERVICE = Group("service")
_TELLING = Group("logs, metrics and traces")
_SECURITY = Group(
    "security",
    "Addresses other than loopback need TLS and API keys. EXPERTMESH_API_KEY may hold one more key.",
)
TWO_WORKERS = WorkersConfig(num_workers=2)
CHECKPOINT = Option(
    "CHECKPOINT",
    help="folder of a checkpoint, ORG/NAME[@REVISION] on the Hugging Face hub, or the URL of a folder "
    "(s3://, gs://, http://, https://, file://)",
)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`api_key` is one more key, from the environment."""

    checkpoint: Annotated[str, CHECKPOINT]
    addresses: Annotated[Addresses, _SERVICE] = field(default_factory=Addresses)
    processes: Annotated[ProcessesConfig, _SERVICE] = field(default_factory=ProcessesConfig)
    admission: Annotated[AdmissionConfig, _SERVICE] = field(default_factory=AdmissionConfig)
    calls: Annotated[CallsConfig, _SERVICE] = field(default_factory=CallsConfig)
    readiness: Annotated[ReadinessConfig, _SERVICE] = field(default_factory=ReadinessConfig)
    model: Annotated[ModelOptions, Group("model")] = field(default_factory=ModelOptions)
    security: Annotated[SecurityConfig, _SECURITY] = field(default_factory=SecurityConfig)
    observability: Annotated[ObservabilityConfig, _TELLING] = field(default_factory=ObservabilityConfig)
    workers: Annotated[WorkersConfig, Group("expert workers")] = TWO_WORKERS
    plan: Annotated[PlanConfig, Group("expert workers")] = field(default_factory=PlanConfig)
    engine: Annotated[EngineConfig, Group("engine")] = field(default_factory=EngineConfig)
    routing: Annotated[RoutingConfig, Group("routing, for measurements")] = field(
        default_factory=RoutingConfig
    )
    api_key: str | None = None
