"""What an engine tells whoever watches it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Traced(NamedTuple):
    """A different `Request.trace`, and which version of the model its request uses: the number, and each
    expert that is not the checkpoint's, as layer/expert:version."""

    trace: object
    version: int = 0
    expert_versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that was run. Times are `time.time_ns()`, for spans; `seconds` is by the monotonic clock.

    `num_prefill_tokens` are those of chunks that did not end in a drawn token after a single one.
    `traces`: of the step's requests, as far as they have one.
    """

    start_ns: int
    end_ns: int
    seconds: float
    num_tokens: int
    num_prefill_tokens: int
    num_sequences: int
    num_new_tokens: int
    traces: tuple[Traced, ...] = ()

    @property
    def phase(self) -> str:
        """A step with prompt tokens in it counts as prefill."""
        return "prefill" if self.num_prefill_tokens else "decode"


class EngineObserver(Protocol):
    """Called on the engine's thread; must be quick and must not raise."""

    def step(self, record: StepRecord) -> None: ...


class EngineObservers:
    """Tells each in turn."""

    def __init__(self, observers: Sequence[EngineObserver]) -> None:
        self._observers = tuple(observers)

    def step(self, record: StepRecord) -> None:
        for observer in self._observers:
            observer.step(record)
