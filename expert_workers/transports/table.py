"""The transports by name: what `--transport` offers. A new one is a folder and a row here.

Light: a transport's module, and the library behind it, is loaded when a transport is made.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expert_workers.transports.base import AnyTransport, TransportOptions


@dataclass(frozen=True, slots=True)
class Row:
    """What the help says of a transport, and its class as MODULE:CLASS, made of TransportOptions.

    `needs_ray`: its workers are processes.
    """

    help: str
    place: str
    needs_ray: bool = True


TRANSPORTS = {
    "stream": Row("over a socket", "expert_workers.transports.stream.transport:StreamTransport"),
    "ray": Row("by Ray's calls, which are slower", "expert_workers.transports.ray.transport:RayTransport"),
    "in-process": Row(
        "workers in this process, for tests",
        "expert_workers.transports.in_process.transport:InProcessTransport",
        needs_ray=False,
    ),
}


def make_transport(name: str, options: "TransportOptions") -> "AnyTransport":
    """Raises KeyError for a name that is in no row, ConfigError for options that cannot be used."""
    module, _, kind = TRANSPORTS[name].place.partition(":")
    transport: AnyTransport = getattr(import_module(module), kind)(options)
    return transport
