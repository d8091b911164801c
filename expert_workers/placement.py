"""Which worker holds which expert module, and who computes which rows. Pure; knows no process and no tensor."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moe_model.dispatch import ExpertKey
from moe_model.errors import ConfigError

Segments = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker may be given."""

    rank: int
    speed: float = 1.0
    max_modules: int | None = None
    node: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """`holders[key]` are the ranks that hold a module, the primary first."""

    holders: Mapping[ExpertKey, tuple[int, ...]]

    @property
    def ranks(self) -> frozenset[int]:
        return frozenset(rank for ranks in self.holders.values() for rank in ranks)

    def experts_of(self, rank: int) -> tuple[ExpertKey, ...]:
        return tuple(sorted(key for key, ranks in self.holders.items() if rank in ranks))


def place(
    keys: Iterable[ExpertKey],
    workers: Sequence[Share],
    replicas: int,
    *,
    loads: Mapping[ExpertKey, float] | None = None,
    redundant: int = 0,
    current: Placement | None = None,
    tolerance: float = 0.1,
) -> Placement:
    if not workers or replicas < 1:
        raise ConfigError("placement: no workers")
    ranks = [w.rank for w in workers]
    count = dict.fromkeys(ranks, 0)
    holders: dict[ExpertKey, tuple[int, ...]] = {}
    keys = sorted(keys)
    for key in keys:
        kept = [] if current is None else [r for r in current.holders.get(key, ()) if r in count]
        limit = -(-len(keys) * min(replicas, len(ranks)) // len(ranks))
        chosen: list[int] = []
        for r in kept:
            if len(chosen) < replicas and count[r] < limit:
                chosen.append(r)
                count[r] += 1
        while len(chosen) < min(replicas, len(ranks)):
            r = min((r for r in ranks if r not in chosen), key=lambda r: (count[r], r))
            chosen.append(r)
            count[r] += 1
        holders[key] = tuple(chosen)
    return Placement(holders)


def moves(old: Placement, new: Placement) -> list[tuple[ExpertKey, int]]:
    return [
        (k, r) for k, ranks in sorted(new.holders.items()) for r in ranks if r not in old.holders.get(k, ())
    ]


def assign(
    holders: Sequence[tuple[int, ...]], counts: Sequence[int], costs: Mapping[int, float]
) -> tuple[dict[int, Segments], list[int]]:
    active, lost = [], []
    for column, rows in enumerate(counts):
        if rows:
            ranks = [rank for rank in holders[column] if rank in costs]
            if ranks:
                active.append((-rows, column, ranks))
            else:
                lost.append(column)
    active.sort()
    load = dict.fromkeys(costs, 0.0)
    segments: dict[int, Segments] = {}
    for negative, column, ranks in active:
        rank = min(ranks, key=lambda r: (load[r] - negative * costs[r], r))
        load[rank] -= negative * costs[rank]
        segments.setdefault(rank, []).append((column, -negative))
    return {rank: sorted(segments[rank]) for rank in sorted(segments)}, lost
