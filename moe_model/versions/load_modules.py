"""Loads many modules, two at a time: while one waits for its disk, the other is packed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from moe_model.machine import give_back_freed_memory
from moe_model.versions.expert_versions import ExpertModule

T = TypeVar("T")

# What is read and not yet packed is memory beyond what is kept: of so many modules at most.
AT_ONCE = 2


def load_modules(load: Callable[[ExpertModule], T], modules: Sequence[ExpertModule]) -> Iterator[T]:
    """What `load` makes of each, in their order. It is called on threads of this iteration's own, which end
    with it. Raises what `load` raises, for the first of the modules for which it does; then no further one
    is begun."""
    last: ExpertModule | None = None
    with ThreadPoolExecutor(AT_ONCE, "load") as threads:
        for module, loaded in zip(modules, threads.map(load, modules), strict=True):
            if last is not None and module.layer != last.layer:
                # Between what is kept lies what was read: without this the peak grows with the layers.
                give_back_freed_memory()
            last = module
            yield loaded
