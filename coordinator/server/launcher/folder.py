"""What is in the folder of a server with processes of its own. It is closed to other users."""

from pathlib import Path


def engine_socket(folder: Path) -> Path:
    """Where the engine listens for fronts."""
    return folder / "engine"


def facts_file(folder: Path) -> Path:
    """The ModelFacts of the model that is served, as the codec has them."""
    return folder / "model"
