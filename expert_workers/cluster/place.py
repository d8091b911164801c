"""Where a Ray is, and what lets a process of this user into it. Light."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RayPlace:
    """HOST:PORT of its head, and variables of the environment; no secret is in them."""

    address: str
    environment: Mapping[str, str] = field(default_factory=dict)


# Waits until a Ray of our own has been started that outlives this process, and says where.
OwnRay = Callable[[], RayPlace]
