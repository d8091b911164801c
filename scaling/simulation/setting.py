"""What is simulated: a model on machines, its workers, the coordinators' engines, and what breaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from coordinator.config.engine import EngineConfig
from expert_workers.dispatch.options import PoolOptions
from moe_model.config import ModelConfig
from scaling.cell import Fault
from scaling.costs.base import NodeCosts
from scaling.costs.choose import costs_of
from scaling.link import Link
from scaling.machines import Machine, Machines
from scaling.shape import Shape, shape_of_config
from scaling.simulation.machine import USUAL_PERIOD_S
from scaling.simulation.network import CableWays, MachineWays, Ways
from scaling.simulation.routing import EVEN, Draws

# Of a machine, with the experts' form, the others' form, and a number of threads.
CostsOf = Callable[[Machine, Shape, str, str, float], NodeCosts]


def usual_costs(machine: Machine, shape: Shape, form: str, shared_form: str, threads: float) -> NodeCosts:
    return costs_of(machine, shape, form=form, shared_form=shared_form, threads=threads)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process computes. `quota`: cores that a control group leaves it of each period; None: no limit.
    `host`: where it is in the network, where that is more than its machine."""

    machine: str
    threads: float
    quota: float | None = None
    host: str = ""

    @property
    def where(self) -> str:
        return self.host or self.machine


@dataclass(frozen=True, slots=True)
class WorkerPlace(Place):
    """`max_modules`: what its memory holds; None: any number."""

    max_modules: int | None = None


@dataclass(frozen=True, slots=True)
class CoordinatorPlace(Place):
    """An engine's; its front and the load's client compute on the same machine."""


@dataclass(frozen=True, slots=True)
class Setting:
    """`holders`: (layer, expert) -> ranks, of a plan; None: as the product places them. `form`: of experts'
    weights; `dtype`: of all else, and of the rows. `cables`: of hosts, where these are on one machine;
    `period_s`: of their quotas. `routing` draws which experts rows go to. `restart_s`: until the process of a
    worker that died is there again, before it loads. `is_forced`: routing is drawn by the server itself."""

    config: ModelConfig
    machines: Machines
    coordinators: tuple[CoordinatorPlace, ...]
    workers: tuple[WorkerPlace, ...] = ()
    engine: EngineConfig = field(default_factory=EngineConfig)
    pool: PoolOptions = field(default_factory=PoolOptions)
    replicas: int = 1
    redundant: int = 0
    holders: dict[tuple[int, int], tuple[int, ...]] | None = None
    cables: dict[str, Link] | None = None
    period_s: float = USUAL_PERIOD_S
    routing: Draws = EVEN
    faults: tuple[Fault, ...] = ()
    restart_s: float = 5.0
    is_forced: bool = False
    seed: int = 0
    costs_of: CostsOf = usual_costs
    name: str = "model"

    @property
    def dtype(self) -> str:
        return self.engine.dtype

    @property
    def form(self) -> str:
        return self.dtype if self.engine.expert_dtype == "model" else self.engine.expert_dtype

    @property
    def shared_form(self) -> str:
        return self.dtype if self.engine.shared_dtype == "model" else self.engine.shared_dtype

    @property
    def shape(self) -> Shape:
        return _shape(self.config, self.name)

    @property
    def is_plain(self) -> bool:
        """Whether a step's calls meet nowhere but at the coordinator: one coordinator, workers with machines
        of their own without quotas, no expert with two of them, nothing that breaks."""
        places = [place.machine for place in (*self.coordinators, *self.workers)]
        return (
            len(self.coordinators) == 1
            and len(set(places)) == len(places)
            and all(worker.quota is None for worker in self.workers)
            and self.has_no_copies
            and not self.faults
        )

    @property
    def has_no_copies(self) -> bool:
        if self.holders is None:
            return self.replicas == 1 and not self.redundant
        return all(len(ranks) == 1 for ranks in self.holders.values())

    @property
    def ways(self) -> Ways:
        return MachineWays(self.machines) if self.cables is None else CableWays(self.cables)

    def costs(self, place: Place, shape: Shape) -> NodeCosts:
        machine = self.machines.named(place.machine)
        return self.costs_of(machine, shape, self.form, self.shared_form, place.threads)


@lru_cache(maxsize=32)
def _shape(config: ModelConfig, name: str) -> Shape:
    return shape_of_config(config, name)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a load: seconds since its beginning, None where a client sends it as its last one ends;
    prompt and output in tokens. `prompt`: its ids, where others' may begin with the same; empty: any."""

    at_s: float | None
    num_prompt: int
    num_output: int
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """`concurrency`: clients, each with one request at a time; None: by `at_s`."""

    asks: Sequence[Ask]
    concurrency: int | None = None
