"""Logprobs of prompt tokens: each row of a chunk scores the token that follows it.

Shapes: T tokens of the step, D d_model, R rows scored at once.
"""

import math

from torch import Tensor

from coordinator.engine.core.batch import Batch
from coordinator.engine.core.step import Chunk
from coordinator.engine.messages.output import TokenLogprobs
from coordinator.engine.sampling.logprobs import token_logprobs
from moe_model.errors import NumericError
from moe_model.model import Model

# Bounds the logits held at once: 128 rows of a vocabulary of 16,384 are 8 MiB.
MAX_ROWS = 128


def score_prompts(model: Model, h_TD: Tensor, batch: Batch) -> dict[int, list[TokenLogprobs]]:
    """By the key of the sequence, for the chunks whose request wants prompt logprobs.

    Raises NumericError for logits that are none: the engine then runs the chunks one by one.
    """
    scores = {}
    for chunk, first_row in zip(batch.chunks, batch.first_rows, strict=True):
        if chunk.sequence.request.returns.prompt_logprobs is None:
            continue
        tokens = scored_tokens(chunk)
        if tokens:
            scores[chunk.sequence.key] = _score(model, h_TD, chunk, first_row, tokens)
    return scores


def scored_tokens(chunk: Chunk) -> range:
    """Positions in the prompt of the tokens that this chunk is the first to score."""
    sequence = chunk.sequence
    if sequence.request.returns.prompt_logprobs is None:
        return range(0)
    after_first = sequence.window_start + chunk.start + 1
    end = min(after_first + chunk.num_tokens, len(sequence.request.prompt_ids))
    return range(max(after_first, sequence.num_scored), end)


def _score(model: Model, h_TD: Tensor, chunk: Chunk, first_row: int, tokens: range) -> list[TokenLogprobs]:
    sequence = chunk.sequence
    row_of_token = first_row - (sequence.window_start + chunk.start + 1)
    num_top = sequence.request.returns.prompt_logprobs
    scores: list[TokenLogprobs] = []
    for start in range(tokens.start, tokens.stop, MAX_ROWS):
        end = min(start + MAX_ROWS, tokens.stop)
        logits_RV = model.logits(h_TD[start + row_of_token : end + row_of_token])
        found = token_logprobs(logits_RV, sequence.token_ids[start:end], [num_top] * (end - start))
        scores += [score for score in found if score is not None]
    if any(math.isnan(score.logprob) for score in scores):
        raise NumericError("the model's logits are not finite")
    return scores
