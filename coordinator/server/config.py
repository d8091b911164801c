"""What a coordinator can be told, as frozen values. The command line fills them, main.py uses them.

What needs no torch is in settings.py, for the command line's arguments.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from coordinator.server.settings import (
    DEFAULT_MAX_OUTPUT_TOKENS,
    Addresses,
    AdmissionConfig,
    EngineSizes,
    ModelOptions,
    ObservabilityConfig,
    ReadinessConfig,
    SecurityConfig,
    ServiceTimes,
    WorkersConfig,
)
from moe_model.errors import ConfigError

__all__ = [
    "DEFAULT_MAX_OUTPUT_TOKENS",
    "Addresses",
    "EngineConfig",
    "ModelOptions",
    "ObservabilityConfig",
    "ServeConfig",
    "WorkersConfig",
]


@dataclass(frozen=True, slots=True)
class EngineConfig(EngineSizes):
    """The engine: what it computes in, and its sizes."""

    dtype: torch.dtype = torch.float32

    def resolve_device(self) -> torch.device:
        """`auto` is a GPU when there is one. Raises ConfigError for a GPU that there is not."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: cuda was asked for and torch sees no GPU")
        return torch.device(self.device)


@dataclass(frozen=True, slots=True)
class ServeConfig(ServiceTimes):
    """A whole server. `api_key` is one more key, from the environment. `strict_fields` refuses what a request
    says and this server does not know; pages of `allowed_origins` may use the HTTP API from a browser."""

    checkpoint: Path
    engine: EngineConfig = field(default_factory=EngineConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    model: ModelOptions = field(default_factory=ModelOptions)
    addresses: Addresses = field(default_factory=Addresses)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    api_key: str | None = None
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    readiness: ReadinessConfig = field(default_factory=ReadinessConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    strict_fields: bool = False
    allowed_origins: tuple[str, ...] = ()
