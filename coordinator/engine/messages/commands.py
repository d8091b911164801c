"""What operators ask of an engine besides requests: each command, and what comes of it.

A command may take long, as loading an expert does; none holds up a step. It raises ExpertMeshErrors only.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from coordinator.engine.messages.stats import WorkersStatus
from expert_workers.status import Scaled
from moe_model.versions.expert_versions import ExpertModule

R = TypeVar("R")


class Command(Generic[R]):
    """Has the result R."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Done:
    """There is nothing to tell."""


@dataclass(frozen=True, slots=True)
class ExpertView:
    """A module as operators see it. `ranks` hold it; `is_retiring`: only older requests use it; `is_missing`:
    no worker can compute it at the moment."""

    module: ExpertModule
    sha256: str
    ranks: tuple[int, ...]
    is_retiring: bool
    is_missing: bool = False


@dataclass(frozen=True, slots=True)
class ReadWorkers(Command[WorkersStatus]):
    """How the expert workers are at this moment."""


@dataclass(frozen=True, slots=True)
class ExpertList:
    """By layer, expert and version."""

    experts: tuple[ExpertView, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """What came of a change of experts."""

    expert: ExpertView
    seconds: float


@dataclass(frozen=True, slots=True)
class CheckIntegrity(Command[Done]):
    """Raises IntegrityError when the engine has lost a block or a sequence."""


@dataclass(frozen=True, slots=True)
class ScaleWorkers(Command[Scaled]):
    """So many expert workers, within `timeout` seconds. Raises NoWorkersError where there never are any."""

    num_workers: int
    timeout: float


@dataclass(frozen=True, slots=True)
class ListExperts(Command[ExpertList]):
    """The modules in use."""


@dataclass(frozen=True, slots=True)
class ReplaceExpert(Command[Changed]):
    """Another version of an expert, from a file. Raises ExchangeError, HaltedError; so do the next two."""

    layer: int
    expert: int
    path: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class AddExpert(Command[Changed]):
    """One more expert of a layer, with a new id."""

    layer: int
    path: str
    sha256: str | None
    router_path: str


@dataclass(frozen=True, slots=True)
class RemoveExpert(Command[Changed]):
    """The model does without an expert."""

    layer: int
    expert: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The requests that ran."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndRequests(Command[Ended]):
    """Ends requests of all fronts with FinishReason.ABORT, each with all its prompts; None: all there are."""

    request_ids: tuple[str, ...] | None
