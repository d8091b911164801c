"""What a server and a renderer's process have in common. Loads no Jinja: only the latter needs it."""

from enum import IntEnum

from coordinator.confined.child import Limits

MAX_RENDERED_CHARS = 4 << 20

LIMITS = Limits(address_space=224 << 20, cpu_seconds=0.4)


class Outcome(IntEnum):
    """What became of a question; the text is the rendering, or says what went wrong."""

    DONE = 0
    FAILED = 1
    NO_TEMPLATE = 2
    OUT_OF_MEMORY = 3
    TOO_LONG = 4
    TOO_DEEP = 5
