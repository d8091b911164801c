"""RunningExperts: what an engine asks of the experts of a running model, in this process or on workers."""

from collections.abc import Sequence
from typing import Protocol

from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.experts import ExpertBackend
from moe_model.versions.expert_versions import Catalog, ExpertModule


class RunningExperts(ExpertBackend, Protocol):
    """Experts that are computed, exchanged while they run, and lost and found again. They begin with the
    checkpoint's.

    A layer's routings name columns of the catalog that was last switched to; the id of an absent expert is
    the number of columns that the layer has. All methods belong to the thread that runs the experts, but for
    those which say that any thread may call them.
    """

    @property
    def answers_travel(self) -> bool:
        """Whether an answer takes a way, so that other work between `begin` and `finish` costs no time."""

    def prepare(self, module: ExpertModule) -> None:
        """Loads a module beside the others, so that `switch` takes no time. Blocks; any thread. Raises
        ExpertMeshError; then the module is nowhere."""

    def switch(self, catalog: Catalog) -> None:
        """What the columns stand for from now on, all of prepared modules. Between two steps. Changes all or,
        when it raises, nothing."""

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """These modules are in no catalog and will not be again. Any thread, after `switch`; never waits."""

    def idle(self) -> None:
        """The engine has nothing to run: it looks after its experts."""

    def wait_for_lost(self, timeout: float) -> bool:
        """After an ExpertsLostError: waits for lost experts, at most so many seconds. Returns whether the
        step shall be tried again; False once the time to wait for them is over."""

    def found(self) -> None:
        """A step has lacked no expert: the next loss is waited for anew."""

    def tell_dispatches(self) -> None:
        """A step is over, or has failed: who watches the experts is told what it has dispatched."""

    def missing_experts(self) -> Sequence[ExpertModule]:
        """Those of the catalog that cannot be computed at the moment. Any thread."""
