"""Which of the tokens that were drawn at drafted positions stand.

A token is drawn after each drafted one as if that were part of the sequence. It stands while all drafted
ones before it are those that were drawn: then it is what a step by itself would have drawn, of the same
logits by the same number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.engine.core.step import Chunk
from coordinator.engine.messages.output import TokenLogprobs
from coordinator.engine.sampling.sampler import Drawn
from coordinator.engine.sampling.sampling_row import SamplingRow
from moe_model.errors import ExpertMeshError


@dataclass(slots=True)
class Accepted:
    """By chunk: the first token and its logprobs; by key of the sequence: why it has no token, and what
    follows the first one."""

    token_ids: list[int | None] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    failures: dict[int, ExpertMeshError] = field(default_factory=dict)
    further: dict[int, Sequence[int]] = field(default_factory=dict)
    further_logprobs: dict[int, Sequence[TokenLogprobs]] = field(default_factory=dict)


def sampling_rows(chunks: Sequence[Chunk]) -> list[SamplingRow]:
    """One for the token after each chunk's own tokens, and one for that after each drafted one."""
    if not any(chunk.draft for chunk in chunks):
        return [chunk.sequence.row for chunk in chunks]
    rows = []
    for chunk in chunks:
        row = chunk.sequence.row
        rows.append(row)
        rows += [row.after(chunk.draft[:end]) for end in range(1, len(chunk.draft) + 1)]
    return rows


def accept(chunks: Sequence[Chunk], drawn: Drawn, logprobs: list[TokenLogprobs | None]) -> Accepted:
    """`drawn` and `logprobs`, if there are any, are those of the `sampling_rows`."""
    if len(drawn.token_ids) == len(chunks):
        failures = {chunks[row].sequence.key: error for row, error in drawn.failures.items()}
        return Accepted(drawn.token_ids, logprobs, failures)
    result, row = Accepted(), 0
    for chunk in chunks:
        key, num_rows = chunk.sequence.key, 1 + len(chunk.draft)
        first, *further = drawn.token_ids[row : row + num_rows]
        result.token_ids.append(first)
        if row in drawn.failures:
            result.failures[key] = drawn.failures[row]
        if logprobs:
            result.logprobs.append(logprobs[row])
        standing = _standing(chunk.draft, first, further)
        if standing:
            result.further[key] = standing
            scores = logprobs[row + 1 : row + 1 + len(standing)]
            result.further_logprobs[key] = [each for each in scores if each is not None]
        row += num_rows
    return result


def _standing(draft: Sequence[int], first: int | None, further: Sequence[int | None]) -> list[int]:
    """The tokens after the first one that stand.

    One that could not be drawn ends them: the next step finds that again, as a first one.
    """
    standing: list[int] = []
    before = first
    for drafted, token_id in zip(draft, further, strict=True):
        if before != drafted or token_id is None:
            break
        standing.append(token_id)
        before = token_id
    return standing
