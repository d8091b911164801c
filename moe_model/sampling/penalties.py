"""What changes logits before a token is drawn: biases and penalties. Pure, over any rows of a batch.

The order is: bias, repetition, frequency, presence; as vLLM's, so that equal requests give equal results.

Shapes: R rows, V vocabulary, L tokens that were seen.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_model.sampling.params import SamplingParams


def add_bias(logits_RV: Tensor, rows: Sequence[int], params: Sequence[SamplingParams]) -> None:
    """Adds each row's own biases, in place. `rows` are the rows of `params`."""
    counts = torch.tensor([len(p.logit_bias) for p in params])
    row_N = torch.tensor(rows).repeat_interleave(counts)
    pairs = [pair for p in params for pair in p.logit_bias]
    ids_N = torch.tensor([token_id for token_id, _ in pairs])
    bias_N = torch.tensor([bias for _, bias in pairs], dtype=logits_RV.dtype, device=logits_RV.device)
    logits_RV.index_put_((row_N.to(logits_RV.device), ids_N.to(logits_RV.device)), bias_N, accumulate=True)


def penalize(logits_RL: Tensor, output_counts_RL: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The logits of tokens that are in a row's prompt or output; `output_counts_RL` says how often each was
    generated.

    Repetition divides what is positive and multiplies what is not (Keskar et al., "CTRL", 2019, section
    4.1); frequency and presence are OpenAI's: subtracted once per occurrence, and once.
    """
    repetition_R1, frequency_R1, presence_R1 = (
        torch.tensor(values, dtype=logits_RL.dtype, device=logits_RL.device).unsqueeze(1)
        for values in (
            [p.repetition_penalty for p in params],
            [p.frequency_penalty for p in params],
            [p.presence_penalty for p in params],
        )
    )
    largest = torch.finfo(logits_RL.dtype).max
    repeated_RL = torch.where(logits_RL > 0, logits_RL / repetition_R1, logits_RL * repetition_R1)
    # A penalty may be as small as it likes: the result stays a number.
    result_RL = repeated_RL.clamp(-largest, largest) - frequency_R1 * output_counts_RL
    return result_RL - presence_R1 * (output_counts_RL > 0)
