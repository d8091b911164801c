"""What the engine can be told that needs no torch: the command line offers it as well."""

from enum import StrEnum

# Positions of one block of the KV cache.
DEFAULT_BLOCK_SIZE = 16


class ContextOverflow(StrEnum):
    """What happens when prompt and output fill the context."""

    STOP = "stop"
    SLIDE = "slide"
