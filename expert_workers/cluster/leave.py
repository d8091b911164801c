"""A node that is about to go: its workers are to go first."""


def leave(timeout: float) -> int:
    """How many workers are still on this node after so many seconds."""
    return 0
