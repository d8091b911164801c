"""What a server takes from its environment, and what its processes get of it. Light."""

import os

API_KEY_VARIABLE = "EXPERTMESH_API_KEY"


def api_key() -> str | None:
    """The key that the environment may hold."""
    return os.environ.get(API_KEY_VARIABLE) or None


def for_processes() -> dict[str, str]:
    """Without the key: who needs it is told."""
    return {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}
