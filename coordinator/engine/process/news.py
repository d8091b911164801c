"""EngineNews: what fronts know of an engine without asking, as frames, each when it has changed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from coordinator.engine.client.handlers import Operated
from coordinator.engine.messages.process import MissingExperts
from coordinator.engine.process.frames import frame_of

# Workers count rows all the time.
WORKERS_INTERVAL = 1.0


@dataclass(slots=True)
class _Fact:
    """`interval`: seconds between two looks that no command asks for."""

    look: Callable[[], Any]
    interval: float = 0.0
    last: Any = None
    frame: bytes = field(default=b"")
    looked_at: float = float("-inf")


class EngineNews:
    """Looks at an engine's side beside its steps. Used on one thread."""

    def __init__(self, operated: Operated) -> None:
        self._facts = (
            _Fact(operated.model),
            _Fact(operated.workers, WORKERS_INTERVAL),
            _Fact(lambda: MissingExperts(tuple(operated.missing()))),
        )

    def changed(self, now: float, *, everything: bool = False) -> list[bytes]:
        """The frames of what has changed since the last look. `everything`: nothing is too fresh."""
        frames = []
        for fact in self._facts:
            if not everything and now - fact.looked_at < fact.interval:
                continue
            fact.looked_at = now
            found = fact.look()
            if found != fact.last:
                fact.last, fact.frame = found, frame_of(found)
                frames.append(fact.frame)
        return frames

    def known(self) -> list[bytes]:
        """The frames of all that was found by the last looks."""
        return [fact.frame for fact in self._facts]
