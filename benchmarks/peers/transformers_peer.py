"""Hugging Face transformers: greedy decoding of a Mixtral with its own key/value cache. A process of its own.

The loop is ours, so that the first token's time is known: what `generate` does for greedy decoding, without
what it prepares around each step. `batched_mm`, the third implementation of the experts, copies the
weights of every token's experts; the library itself says it is not for CPUs.

Shapes: B batch, S prompt, V vocabulary.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.peers.jobs import Load, Probe, Timing, prompt_ids
from benchmarks.peers.serve import serve

EXPERTS = ("grouped_mm", "eager")
FLOAT32 = "float32"


class TransformersPeer:
    """The ways are the library's own implementations of a mixture's experts, the first is its default, and
    float32 beside what was asked for: processors without instructions for bfloat16 are faster in it.
    """

    version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def __init__(self, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._dtype = options["dtype"]
        names = dict.fromkeys((self._dtype, FLOAT32))
        self._models = {name: _load(options["model"], getattr(torch, name)) for name in names}

    def ways(self, load: Load) -> Sequence[str]:
        return [f"{experts}, {name}" for name in self._models for experts in EXPERTS]

    def run(self, load: Load, way: str) -> Timing:
        experts, name = way.split(", ")
        model = self._models[name]
        prompts = [prompt_ids(i, load.prompt_tokens, model.config.vocab_size) for i in range(load.batch)]
        model.set_experts_implementation(experts)
        times, _, _ = _greedy(model, prompts, load.new_tokens)
        return Timing(times[1] - times[0], times[2] - times[1])

    def probe(self, prompt: Sequence[int], new_tokens: int) -> Probe:
        _, logits_BV, token_ids = _greedy(self._models[self._dtype], [prompt], new_tokens)
        return Probe(logits_BV[0].tolist(), token_ids)


def _load(folder: str, dtype: torch.dtype) -> Any:
    """Raises ValueError when a weight is missing or left over."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    strange = {key: names for key, names in report.items() if names}
    if strange:
        raise ValueError(f"the weights do not fit the model: {strange}")
    return model.eval()


@torch.inference_mode()
def _greedy(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> tuple[list[float], Tensor, list[int]]:
    """Start, first tokens, end; the logits after the prompts; the tokens of the first sequence."""
    cache = transformers.DynamicCache(config=model.config)
    ids_BS = torch.tensor(prompts)
    times = [time.perf_counter()]
    first_BV = _logits(model, ids_BS, cache)
    next_B1 = first_BV.argmax(-1, keepdim=True)
    times.append(time.perf_counter())
    found = [next_B1]
    for _ in range(new_tokens - 1):
        next_B1 = _logits(model, next_B1, cache).argmax(-1, keepdim=True)
        found.append(next_B1)
    times.append(time.perf_counter())
    return times, first_BV.float(), torch.cat(found, dim=1)[0].tolist()


def _logits(model: Any, ids_BS: Tensor, cache: object) -> Tensor:
    """Of the last position only."""
    out = model(input_ids=ids_BS, cache=cache, use_cache=True, logits_to_keep=1)
    logits_BV: Tensor = out.logits[:, -1]
    return logits_BV


if __name__ == "__main__":
    serve(TransformersPeer)
