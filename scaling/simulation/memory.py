"""What a setting's machines must hold, and what a machine does that cannot hold a whole model."""

from collections.abc import Mapping

from msgspec import Struct

from scaling.costs.forms import cache_value_bytes, weight_bytes
from scaling.shape import Shape
from scaling.simulation.setting import Setting
from scaling.simulation.workers import Holders


class Fit(Struct, frozen=True):
    """In gigabytes of 1e9 bytes. `lacks`: what does not fit, in a few words; empty: all does."""

    coordinator_gb: float
    worker_gb: float
    cache_gb: float
    lacks: str


def fit(setting: Setting, shape: Shape, holders: Holders, num_tokens: int) -> Fit:
    """With `num_tokens` tokens in the cache of each coordinator."""
    own = shared_bytes(setting, shape) + (0.0 if setting.workers else expert_bytes(setting, shape))
    cache = num_tokens * shape.cache_values * cache_value_bytes(setting.dtype)
    held = _modules_by_rank(holders)
    one = shape.expert_params * weight_bytes(setting.form)
    lacks = [
        f"coordinator: {place.machine}"
        for place in setting.coordinators
        if own + cache > 1e9 * setting.machines.named(place.machine).memory_gb
    ]
    lacks += [
        f"worker {rank}"
        for rank, worker in enumerate(setting.workers)
        if held.get(rank, 0) * one > 1e9 * setting.machines.named(worker.machine).memory_gb
    ]
    most = max(held.values(), default=0) * one
    said = ", ".join(lacks[:3]) + (f" and {len(lacks) - 3} more" if len(lacks) > 3 else "")
    return Fit(own / 1e9, most / 1e9, cache / 1e9, said)


def shared_bytes(setting: Setting, shape: Shape) -> float:
    return (shape.shared_params + shape.embedding_params) * weight_bytes(setting.shared_form)


def expert_bytes(setting: Setting, shape: Shape) -> float:
    return shape.num_experts * shape.expert_params * weight_bytes(setting.form)


def swap_seconds(setting: Setting, shape: Shape, batch: int, num_tokens: int) -> float:
    """How long one machine reads experts from its disk in each step, of those that its memory does not hold.

    It keeps as many as there is room for, any of them; a step of `batch` rows touches E (1 - (1 - K/E)^batch)
    experts of a layer where all are alike, and what it lacks of those is read at the disk's rate. Infinite
    where nothing says that rate, or where even the rest does not fit."""
    machine = setting.machines.named(setting.coordinators[0].machine)
    cache = num_tokens * shape.cache_values * cache_value_bytes(setting.dtype)
    room = 1e9 * machine.memory_gb - shared_bytes(setting, shape) - cache
    if room >= expert_bytes(setting, shape):
        return 0.0
    if machine.disk_mb_per_s is None or room < 0:
        return float("inf")
    missing = 1 - room / expert_bytes(setting, shape)
    touched = shape.n_experts * (1 - (1 - shape.top_k / shape.n_experts) ** batch)
    read = len(shape.moe_layers) * touched * missing * shape.expert_params * weight_bytes(setting.form)
    return read / (1e6 * machine.disk_mb_per_s)


def _modules_by_rank(holders: Mapping[tuple[int, int], tuple[int, ...]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for ranks in holders.values():
        for rank in ranks:
            found[rank] = found.get(rank, 0) + 1
    return found
