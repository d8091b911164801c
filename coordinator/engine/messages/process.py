"""What an engine in a process of its own and its fronts say to each other besides requests and news."""

from dataclasses import dataclass

from coordinator.engine.messages.output import Output
from coordinator.engine.messages.stats import EngineStats
from moe_model.versions.expert_versions import ExpertModule


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of either side: both must be of one version."""

    version: str


@dataclass(frozen=True, slots=True)
class Call:
    """A command, encoded. `number` is its answer's too."""

    number: int
    command: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A command's result, or its Failure, encoded."""

    number: int
    result: bytes


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a step says to one front. `tokens` are outputs that are one token and nothing else: number of the
    request, index of the sequence, token id. `others` come after them, each with its request's number.
    `stats`: as they are after the step, where they have changed."""

    tokens: tuple[tuple[int, int, int], ...] = ()
    others: tuple[tuple[int, Output], ...] = ()
    stats: EngineStats | None = None


@dataclass(frozen=True, slots=True)
class MissingExperts:
    """All that cannot be computed at the moment."""

    modules: tuple[ExpertModule, ...]


@dataclass(frozen=True, slots=True)
class Beat:
    """The engine's process has nothing to say, and is there."""
