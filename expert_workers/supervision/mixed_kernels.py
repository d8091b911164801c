"""MixedKernels: says once what workers of different processors mean for the bits of outputs.

Belongs to the supervisor's thread.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

from expert_workers.dispatch.routes import HERE
from expert_workers.supervision.worker_state import SupervisedWorker
from moe_model.kernels.same_bits import KernelKind

_log = logging.getLogger(__name__)


class MixedKernels:
    """Looks at the workers that are ready; a worker that has come back as it was is nothing new."""

    def __init__(self, here: KernelKind | None = None, *, computes_here: bool = True) -> None:
        """`here`: what this process computes with, None: nothing that an instruction set is for;
        `computes_here`: also experts, those that no worker can take."""
        self._here = {} if here is None else {HERE: here}
        self._computes_here = computes_here
        self._known: set[tuple[int, KernelKind]] = set()

    def look(self, workers: Iterable[SupervisedWorker]) -> None:
        infos = {worker.rank: worker.info for worker in workers if worker.is_ready}
        kinds = {rank: info.kernels for rank, info in infos.items() if info is not None and info.kernels}
        if kinds.items() <= self._known:
            return
        self._known.update(kinds.items())
        precision = next(info.dtype for info in infos.values() if info is not None)
        for line in differences(self._here | kinds, precision, computes_here=self._computes_here):
            _log.warning("%s", line)


def differences(kinds: Mapping[int, KernelKind], precision: str, *, computes_here: bool = True) -> list[str]:
    """A line for those of each kind that give other bits than most do. `kinds` by rank.

    A coordinator that computes no experts gives none, and must have the instruction set that makes them the
    same: it is started with it as well.
    """
    by_bits: dict[str, list[int]] = {}
    for rank, kind in sorted(kinds.items()):
        if rank == HERE and not computes_here:
            continue
        by_bits.setdefault(kind.bits, []).append(rank)
    most, *others = sorted(by_bits.values(), key=len, reverse=True) if by_bits else ([],)
    return [
        f"{_names(ranks)}: {_kernels(ranks, kinds)} gives experts of {precision} other bits than "
        f"{_kernels(most, kinds)} of {_names(most)}: a token may depend on which of them computed it; "
        f"{_remedy(kinds)}"
        for ranks in others
    ]


def _names(ranks: Sequence[int]) -> str:
    workers = [rank for rank in ranks if rank != HERE]
    some = "workers " if len(workers) > 1 else "worker "
    return " and ".join(
        (["the coordinator"] if HERE in ranks else [])
        + ([some + ", ".join(map(str, workers))] if workers else [])
    )


def _kernels(ranks: Sequence[int], kinds: Mapping[int, KernelKind]) -> str:
    return " and ".join(dict.fromkeys(kinds[rank].name for rank in ranks))


def _remedy(kinds: Mapping[int, KernelKind]) -> str:
    """What makes them the same, at the least cost."""
    lacking = [rank for rank, kind in kinds.items() if not kind.available]
    if lacking:
        return f"install {_names(lacking)} again with a C compiler"
    first, *others = kinds.values()
    best = next(name for name in first.available if all(name in kind.available for kind in others))
    return f"--instruction-set={best} makes it the same"
