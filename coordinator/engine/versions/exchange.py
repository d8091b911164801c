"""ExpertExchange: which expert modules the running model consists of. Owns versions, slots and expert ids.

A change is checked, then loaded beside what runs, then switched to between two steps. One that fails at any
point leaves all as it was. There is one at a time: another is refused meanwhile.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Protocol

import torch

from coordinator.engine.messages.commands import Changed, ExpertView
from coordinator.engine.messages.errors import ExchangeError
from coordinator.engine.messages.stats import ModelStatus
from coordinator.engine.versions.model_versions import ModelVersions
from moe_model.checkpoint.module_file import check_module, read_router_row
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import LIMITS
from moe_model.errors import CheckpointError, ConfigError, ExpertMeshError, HaltedError
from moe_model.families import family_of
from moe_model.kernels.base import Router
from moe_model.layers.dense import Gate
from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.router import RouterWeights
from moe_model.names import WeightForm, stored_form
from moe_model.versions.expert_versions import ExpertFile, ExpertModule
from moe_model.versions.model_version import ModelVersion, RoutedLayer

logger = logging.getLogger(__name__)

KINDS = ("replace", "add", "remove")
# Between two steps; one that waits for lost experts comes back several times a second.
SWITCH_TIMEOUT = 60.0
# The largest two-byte number stands for no expert in a routing trace.
MAX_EXPERT_ID = (1 << 16) - 2
_SHA256 = re.compile("[0-9a-f]{64}")


class ExchangedExperts(Protocol):
    """What an exchange needs of a model's experts: see RunningExperts and Workers."""

    def prepare(self, module: ExpertModule) -> None: ...
    def release(self, keys: Sequence[ExpertKey]) -> None: ...
    def holders(self, key: ExpertKey) -> Sequence[int]: ...
    def missing_experts(self) -> Sequence[ExpertModule]: ...


# Makes the engine switch to a version of the model, between two steps.
SwitchEngine = Callable[[ModelVersion], Future[None]]


class ExpertExchange:
    """Any thread may ask; changes block for as long as they take."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        experts: ExchangedExperts,
        versions: ModelVersions,
        switch_engine: SwitchEngine,
        make_router: Callable[[RouterWeights], Router],
        switch_timeout: float = SWITCH_TIMEOUT,
        form: WeightForm = "model",
    ) -> None:
        """`form` is what the experts are kept in: of files' numbers there is none in one that is stored."""
        config = checkpoint.config
        self._checkpoint, self._config = checkpoint, config
        self._shapes = family_of(config).expert_shapes(config)
        self._experts, self._versions = experts, versions
        self._switch_engine, self._make_router = switch_engine, make_router
        self._switch_timeout, self._form = switch_timeout, form
        self._next_slots = [len(config.experts_of(layer)) for layer in range(config.n_layers)]
        self._next_ids = list(self._next_slots)
        self._counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._busy = threading.Lock()

    def list(self) -> tuple[ExpertView, ...]:
        """By layer, expert and version."""
        live = self._versions.live
        modules = {module for version in live for module in version.modules}
        ordered = sorted(modules, key=lambda module: (module.layer, module.expert, module.version))
        missing = frozenset(self._experts.missing_experts())
        return tuple(self._view(module, live, missing) for module in ordered)

    def status(self) -> ModelStatus:
        """What new requests use, and the changes so far."""
        newest = self._versions.newest
        return ModelStatus(newest.experts, newest.number, newest.exchanged, dict(self._counts))

    def replace(self, layer: int, expert: int, path: str, sha256: str | None = None) -> Changed:
        """Another version of an expert. Raises ExchangeError, and HaltedError where the server ends."""
        with self._alone():
            started = time.monotonic()
            routed = self._routed(layer)
            column = _column(routed, layer, expert)
            file = self._checked(path, sha256)
            version = routed.modules[column].version + 1
            module = ExpertModule(layer, self._take_slot(layer), expert, version, file)
            modules = (*routed.modules[:column], module, *routed.modules[column + 1 :])
            self._load_and_switch(module, RoutedLayer(modules, routed.gate))
            return self._done("replace", module, started)

    def add(self, layer: int, path: str, sha256: str | None, router_path: str) -> Changed:
        """One more expert of a layer, with a new id. Raises ExchangeError."""
        with self._alone():
            started = time.monotonic()
            routed = self._routed(layer)
            expert = self._next_ids[layer]
            if len(routed.modules) >= LIMITS["n_experts"] or expert > MAX_EXPERT_ID:
                raise ExchangeError(f"layer {layer} can have no more experts")
            file = self._checked(path, sha256)
            row = self._checked_row(router_path, routed.router_weights)
            module = ExpertModule(layer, self._take_slot(layer), expert, 0, file)
            weights = routed.router_weights.followed_by(row)
            self._load_and_switch(module, self._rerouted((*routed.modules, module), weights))
            self._next_ids[layer] = expert + 1
            return self._done("add", module, started)

    def remove(self, layer: int, expert: int) -> Changed:
        """Does without an expert. Raises ExchangeError."""
        with self._alone():
            started = time.monotonic()
            routed = self._routed(layer)
            column = _column(routed, layer, expert)
            num_left = len(routed.modules) - 1
            if num_left < self._config.top_k:
                raise ExchangeError(
                    f"layer {layer} would have {num_left} experts, a token goes to {self._config.top_k}"
                )
            stay = [each for each in range(len(routed.modules)) if each != column]
            modules = tuple(routed.modules[each] for each in stay)
            changed = self._rerouted(modules, routed.router_weights.take(stay))
            self._switch(layer, changed)
            return self._done("remove", routed.modules[column], started)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._versions.is_forced:
            raise ExchangeError("experts stay as they are while the server has --force-routing")
        if not self._busy.acquire(blocking=False):
            raise ExchangeError("another change of experts is under way")
        try:
            yield
        finally:
            self._busy.release()

    def _routed(self, layer: int) -> RoutedLayer:
        if not 0 <= layer < self._config.n_layers:
            raise ExchangeError(f"{layer} is not in [0, {self._config.n_layers})", "layer")
        if layer in self._config.dense_layers:
            raise ExchangeError(f"layer {layer} is dense: it has no experts", "layer")
        return self._versions.newest.layers[layer]

    def _checked(self, path: str, sha256: str | None) -> ExpertFile:
        if stored_form(self._form):
            raise ExchangeError(
                f"experts are kept in {self._form}, which modules of files are not in; "
                "they can be exchanged with --expert-dtype model, or one that rounds"
            )
        wanted = None if sha256 is None else sha256.lower()
        if wanted is not None and not _SHA256.fullmatch(wanted):
            raise ExchangeError("is not 64 hexadecimal digits", "sha256")
        with _field("path"):
            return check_module(path, self._shapes, self._checkpoint.dtype, wanted)

    def _checked_row(self, path: str, like: RouterWeights) -> RouterWeights:
        with _field("router_path"):
            return read_router_row(path, like, self._checkpoint.dtype)

    def _take_slot(self, layer: int) -> int:
        """Never given out again, whatever comes of it: a worker may have loaded it."""
        self._next_slots[layer] += 1
        return self._next_slots[layer] - 1

    def _rerouted(self, modules: tuple[ExpertModule, ...], weights: RouterWeights) -> RoutedLayer:
        """Raises ExchangeError where the router's rule cannot be over so many experts."""
        try:
            router = self._make_router(weights)
        except ConfigError as error:
            raise ExchangeError(str(error)) from None
        return RoutedLayer(modules, Gate(router, weights))

    def _load_and_switch(self, module: ExpertModule, changed: RoutedLayer) -> None:
        try:
            with _field("path"), _foreseen("the module could not be loaded"):
                self._experts.prepare(module)
            self._switch(module.layer, changed)
        except (ExchangeError, HaltedError):
            self._experts.release([module.key])
            raise

    def _switch(self, layer: int, changed: RoutedLayer) -> None:
        version = self._versions.newest.followed_by(layer, changed)
        with _foreseen("the engine could not switch"):
            called = self._switch_engine(version)
            try:
                called.result(self._switch_timeout)
            except TimeoutError:
                if called.cancel():
                    raise ExchangeError(f"no step ended in {self._switch_timeout:g} s") from None
                called.result()
            except CancelledError:
                raise HaltedError("the server is shutting down") from None

    def _done(self, kind: str, module: ExpertModule, started: float) -> Changed:
        self._counts[kind] += 1
        view = self._view(module, self._versions.live, frozenset(self._experts.missing_experts()))
        changed = Changed(view, time.monotonic() - started)
        logger.info(
            "experts: %s layer=%d expert=%d version=%d sha256=%s seconds=%.3f",
            *(kind, module.layer, module.expert, module.version, changed.expert.sha256, changed.seconds),
        )
        return changed

    def _view(
        self, module: ExpertModule, live: Sequence[ModelVersion], missing: AbstractSet[ExpertModule]
    ) -> ExpertView:
        file = module.file
        own = self._checkpoint.expert_sha256
        sha256 = own(module.layer, module.expert) if file is None else file.sha256
        is_retiring = module not in live[-1].layers[module.layer].modules
        ranks = tuple(self._experts.holders(module.key))
        return ExpertView(module, sha256, ranks, is_retiring, module in missing)


def _column(routed: RoutedLayer, layer: int, expert: int) -> int:
    if expert not in routed.experts:
        raise ExchangeError(f"layer {layer} has no expert {expert}", "expert_id")
    return routed.experts.index(expert)


@contextmanager
def _field(name: str) -> Iterator[None]:
    """What is wrong inside with a file is so with this field."""
    try:
        yield
    except CheckpointError as error:
        raise ExchangeError(str(error), name) from None


@contextmanager
def _foreseen(message: str) -> Iterator[None]:
    """Whatever goes wrong inside is an ExchangeError: this process has more to do than this change. But where
    it ends, HaltedError says so."""
    try:
        yield
    except (ExchangeError, CheckpointError, HaltedError):
        raise
    except ExpertMeshError as error:
        raise ExchangeError(f"{message}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise ExchangeError(f"{message}: not enough memory") from None
    except Exception as error:
        logger.exception("%s", message)
        raise ExchangeError(f"{message}; the server's log says why") from error
