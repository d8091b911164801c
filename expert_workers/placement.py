"""Which worker holds which expert, and which live holder computes it. Pure; knows no process and no tensor.

A module is one expert of one layer. Shapes: E experts of a layer.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from moe_model.dispatch import ExpertKey
from moe_model.errors import ConfigError, ExpertsLostError

Segments = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Placement:
    """`holders[layer][expert]` are the ranks that hold a module, the primary first."""

    n_layers: int
    n_experts: int
    num_workers: int
    holders: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def keys(self) -> Iterator[ExpertKey]:
        return ((layer, expert) for layer in range(self.n_layers) for expert in range(self.n_experts))

    def experts_of(self, rank: int) -> tuple[ExpertKey, ...]:
        """The modules a worker holds, by layer and expert."""
        return tuple(key for key in self.keys if rank in self.holders[key[0]][key[1]])

    def layers_of(self, rank: int) -> dict[int, tuple[int, ...]]:
        """layer -> the experts of it that a worker holds; layers of which it holds none are left out."""
        layers: dict[int, tuple[int, ...]] = {}
        for layer, expert in self.experts_of(rank):
            layers[layer] = (*layers.get(layer, ()), expert)
        return layers

    def assign(self, layer: int, counts_E: Sequence[int], live: AbstractSet[int]) -> dict[int, Segments]:
        """Gives every expert that has rows, whole, to one live holder: largest first, to the least loaded.

        Whole, because the shape of a matrix product decides its rounding: a split expert would not equal the
        same expert run in one place. Raises ExpertsLostError for experts without a live holder.
        """
        active, lost, is_choice = [], [], False
        for expert, holders in enumerate(self.holders[layer]):
            if counts_E[expert]:
                ranks = [rank for rank in holders if rank in live]
                active.append((-counts_E[expert], expert, ranks))
                is_choice |= len(ranks) > 1
                if not ranks:
                    lost.append(expert)
        if lost:
            asked = sorted({rank for expert in lost for rank in self.holders[layer][expert]})
            raise ExpertsLostError(_lost_message(layer, lost, asked), tuple(asked))
        if is_choice:
            active.sort()
        segments: dict[int, Segments] = {}
        load = dict.fromkeys(live, 0)
        for negative, expert, ranks in active:
            rank = ranks[0] if len(ranks) == 1 else min(ranks, key=lambda r: (load[r], r))
            load[rank] -= negative
            segments.setdefault(rank, []).append((expert, -negative))
        return {rank: sorted(segments[rank]) for rank in sorted(segments)}


def place(n_layers: int, n_experts: int, num_workers: int, replicas: int = 1) -> Placement:
    """Spreads the modules over any number of workers, each module on `replicas` of them.

    Copies per worker differ by at most one within each layer and at most one over all layers. Among equals, a
    worker that shares the fewest modules with the copies already chosen wins, so that one lost worker's rows
    spread over many. Raises ConfigError.
    """
    if num_workers < 1:
        raise ConfigError(f"workers: {num_workers} is less than 1")
    if not 1 <= replicas <= num_workers:
        raise ConfigError(f"replicas: {replicas} is not between 1 and the number of workers, {num_workers}")
    total = [0] * num_workers
    shared = [[0] * num_workers for _ in range(num_workers)]
    layers = [_place_layer(n_experts, replicas, total, shared) for _ in range(n_layers)]
    return Placement(n_layers, n_experts, num_workers, tuple(layers))


def _place_layer(
    n_experts: int, replicas: int, total: list[int], shared: list[list[int]]
) -> tuple[tuple[int, ...], ...]:
    here = [0] * len(total)
    layer = []
    for _ in range(n_experts):
        chosen: list[int] = []
        for _ in range(replicas):
            rank = min(
                (rank for rank in range(len(total)) if rank not in chosen),
                key=lambda r: (here[r], total[r], sum(shared[r][other] for other in chosen), r),
            )
            chosen.append(rank)
        for rank in chosen:
            here[rank] += 1
            total[rank] += 1
            for other in chosen:
                shared[rank][other] += 1
        layer.append(tuple(chosen))
    return tuple(layer)


def _lost_message(layer: int, experts: Sequence[int], ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, experts[:8])) + (", ..." if len(experts) > 8 else "")
    workers = ", ".join(map(str, ranks))
    return f"layer {layer}: no live worker holds expert {shown} (lost: worker {workers})"
