"""What a machine runs, and what must be the same on all machines of a cluster. Light."""

import platform
from dataclasses import asdict, dataclass
from importlib import metadata

# Of what joiners and heads say to each other.
PROTOCOL = 1
_UNKNOWN = "(not installed)"


@dataclass(frozen=True, slots=True)
class Versions:
    """Ray wants its own and Python's to be the same to the last digit, and so do we."""

    expertmesh: str
    ray: str
    python: str
    protocol: str = str(PROTOCOL)

    @classmethod
    def here(cls) -> "Versions":
        return cls(_version("expertmesh"), _version("ray"), platform.python_version())

    def differences(self, other: "Versions") -> list[tuple[str, str, str]]:
        """(what, ours, theirs) of what is not the same."""
        ours, theirs = asdict(self), asdict(other)
        return [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _UNKNOWN
