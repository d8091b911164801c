"""Loads many modules, two at a time: while one waits for its disk, the other is packed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from moe_model.versions.expert_versions import ExpertModule

T = TypeVar("T")

# What is read and not yet packed is memory beyond what is kept: of so many modules at most.
AT_ONCE = 2


def load_modules(load: Callable[[ExpertModule], T], modules: Sequence[ExpertModule]) -> Iterator[T]:
    """What `load` makes of each, in their order. It is called on threads of this iteration's own, which end
    with it. Raises what `load` raises, for the first of the modules for which it does; then no further one
    is begun."""
    with ThreadPoolExecutor(AT_ONCE, "load") as threads:
        yield from threads.map(load, modules)
