"""What changes logits before a token is drawn: biases and penalties. Pure, over any rows of a batch.

The order is: bias, repetition, frequency, presence; as vLLM's, so that equal requests give equal results.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_model.sampling import SamplingParams


def is_penalized(p: SamplingParams) -> bool:
    """Whether the tokens so far matter to the next one."""
    return bool(p.presence_penalty or p.frequency_penalty) or p.repetition_penalty != 1


def add_bias(logits_RV: Tensor, rows: Sequence[int], params: Sequence[SamplingParams]) -> None:
    """Adds each row's own biases, in place. `rows` are the rows of `params`."""
    counts = torch.tensor([len(p.logit_bias) for p in params])
    row_N = torch.tensor(rows).repeat_interleave(counts)
    pairs = [pair for p in params for pair in p.logit_bias]
    ids_N = torch.tensor([token_id for token_id, _ in pairs])
    bias_N = torch.tensor([bias for _, bias in pairs], dtype=logits_RV.dtype, device=logits_RV.device)
    logits_RV.index_put_((row_N.to(logits_RV.device), ids_N.to(logits_RV.device)), bias_N, accumulate=True)


def penalize(
    logits_RV: Tensor, output_counts_RV: Tensor, seen_RV: Tensor, params: Sequence[SamplingParams]
) -> Tensor:
    """`output_counts_RV` says how often a token was generated, `seen_RV` whether it is in prompt or output.

    Repetition divides what is positive and multiplies what is not (Keskar et al., "CTRL", 2019, section
    4.1); frequency and presence are OpenAI's: subtracted once per occurrence, and once.
    """
    repetition_R1, frequency_R1, presence_R1 = (
        torch.tensor(values, dtype=logits_RV.dtype, device=logits_RV.device).unsqueeze(1)
        for values in (
            [p.repetition_penalty for p in params],
            [p.frequency_penalty for p in params],
            [p.presence_penalty for p in params],
        )
    )
    largest = torch.finfo(logits_RV.dtype).max
    repeated_RV = torch.where(logits_RV > 0, logits_RV / repetition_R1, logits_RV * repetition_R1)
    # A penalty may be as small as it likes: the result stays a number.
    repeated_RV = repeated_RV.clamp(-largest, largest)
    result_RV = torch.where(seen_RV, repeated_RV, logits_RV)
    result_RV = result_RV - frequency_R1 * output_counts_RV
    return result_RV - presence_R1 * (output_counts_RV > 0)
