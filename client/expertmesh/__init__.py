"""Clients of expertmesh servers, blocking and for asyncio, and the `expertmesh` command.

    from expertmesh import Client

    with Client("127.0.0.1:50051") as client:
        print(client.generate("def main():", max_tokens=20).text)

The gRPC code that is generated from our .proto files is in `expertmesh.v1`.
"""

import importlib

# As of `typing`, which is not loaded here: the command passes through this file before it minds Ctrl-C.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from expertmesh.client import AsyncClient, Client
    from expertmesh.connection import Connection
    from expertmesh.control import ControlClient
    from expertmesh.errors import ClientError, ConfigError, ExpertMeshError
    from expertmesh.results import (
        Chat,
        Completion,
        Delta,
        Event,
        Finished,
        GenerateOptions,
        ModelInfo,
        Output,
        Prompt,
        Started,
        Summary,
        Timings,
        TokenLogprob,
        Usage,
    )

__all__ = [
    "AsyncClient",
    "Chat",
    "Client",
    "ClientError",
    "Completion",
    "ConfigError",
    "Connection",
    "ControlClient",
    "Delta",
    "Event",
    "ExpertMeshError",
    "Finished",
    "GenerateOptions",
    "ModelInfo",
    "Output",
    "Prompt",
    "Started",
    "Summary",
    "Timings",
    "TokenLogprob",
    "Usage",
]

_MODULES = {
    "AsyncClient": "client",
    "Client": "client",
    "ClientError": "errors",
    "ConfigError": "errors",
    "Connection": "connection",
    "ControlClient": "control",
    "ExpertMeshError": "errors",
}


def __getattr__(name: str) -> object:
    """Loads on first use: a command that only shows its help does not wait for grpc (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'results')}")
    found: object = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
