"""Record: all that a run has seen, for judge.py to judge."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.history import Stream
from chaos.scenario import Scenario


@dataclass(slots=True)
class FaultRecord:
    """One event that disturbs. Times are monotonic seconds: `ended` is when the event itself was over,
    `restored` when all was as before. `problem` says why it did not happen, or was not got over."""

    do: str
    began: float
    rank: int | None = None
    pid: int | None = None
    proof: str = ""
    problem: str = ""
    ended: float | None = None
    restored: float | None = None
    wants_restored: bool = True


@dataclass(slots=True)
class Record:
    """`golden` and `golden_after` are tokens by request, before and after an exchange of an expert, which
    took from `exchange[0]` to `exchange[1]`."""

    scenario: Scenario
    address: str
    golden: Sequence[Sequence[int]] = ()
    golden_after: Sequence[Sequence[int]] | None = None
    exchange: tuple[float, float] | None = None
    streams: Sequence[Stream] = ()
    num_sent: int = 0
    began: float = 0.0
    ended: float = 0.0
    faults: list[FaultRecord] = field(default_factory=list)
    worker_losses: int = 0
    left_over: Sequence[str] = ()
    idle_after: float | None = None

    @property
    def num_exchanged(self) -> int | None:
        """How many outputs are others with the exchanged expert; None if there is none."""
        if self.golden_after is None:
            return None
        return sum(a != b for a, b in zip(self.golden, self.golden_after, strict=True))

    def goldens(self, stream: Stream) -> list[Sequence[int]]:
        """What is right for a stream: one output, or either of two if the exchange came while it ran."""
        before = self.golden[stream.request]
        if self.exchange is None or self.golden_after is None:
            return [before]
        after = self.golden_after[stream.request]
        begin, end = self.exchange
        if stream.ends and stream.due < begin and stream.ends[0].at < begin:
            return [before]
        return [after] if stream.due > end else [before, after]
