"""What one run of a step found out. Plain values, by chunk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coordinator.engine.core.sequence import Sequence as EngineSequence
from coordinator.engine.messages.output import RoutedExperts, TokenLogprobs
from moe_model.errors import ExpertMeshError


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTrace:
    """Expert ids, `ids_TLK`, of the tokens from `first_position` of prompt and output."""

    first_position: int
    ids_TLK: np.ndarray

    def between(self, start: int, end: int) -> tuple[RoutedExperts, ...]:
        """The part at positions [start, end), if any."""
        first = max(start, self.first_position)
        last = min(end, self.first_position + len(self.ids_TLK))
        if first >= last:
            return ()
        return (RoutedExperts(first, self.ids_TLK[first - self.first_position : last - self.first_position]),)


class RoutedRows(NamedTuple):
    """Of one chunk: the tokens from `first_position` of prompt and output, the last of which may be drafts.
    `ids_TLK` is uint16, its largest number stands for no expert."""

    sequence: EngineSequence
    first_position: int
    ids_TLK: np.ndarray
    num_drafted: int


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """`token_ids` and `logprobs` are of the step's sampling chunks, in order; a token is None where none
    could be drawn. The rest is by the key of the sequence: why it fails, and what it asked for.

    `further` and `further_logprobs` are what follows that token, as far as it stands: see acceptance.py.
    `prompt_logprobs` begin with prompt token `Sequence.num_scored`. `routed`: of all chunks, where the
    routing is recorded.
    """

    token_ids: Sequence[int | None]
    logprobs: Sequence[TokenLogprobs | None] = ()
    failures: Mapping[int, ExpertMeshError] = field(default_factory=dict)
    further: Mapping[int, Sequence[int]] = field(default_factory=dict)
    further_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[TokenLogprobs]] = field(default_factory=dict)
    traces: Mapping[int, ChunkTrace] = field(default_factory=dict)
    routed: Sequence[RoutedRows] = ()
