"""llama.cpp through its C interface: parallel sequences, greedy decoding. A process of its own.

Shapes: B batch, V vocabulary.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.peers.jobs import Load, Probe, Timing, prompt_ids
from benchmarks.peers.serve import serve

DEFAULT_BATCH_TOKENS = 2048
FLASH, NO_FLASH, UNIFIED = "flash attention", "no flash attention", "one cache for all"


class Context:
    """A llama.cpp context of `batch` sequences, and the batches that are handed to it."""

    def __init__(self, model: object, vocab_size: int, threads: int, load: Load, way: str) -> None:
        params = llama_cpp.llama_context_default_params()
        length = load.prompt_tokens + load.new_tokens
        params.n_ctx = load.batch * (-(-length // 256) * 256)
        params.n_batch = max(DEFAULT_BATCH_TOKENS, load.batch * load.prompt_tokens)
        params.n_seq_max = load.batch
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = UNIFIED in way
        if NO_FLASH in way:
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError("llama.cpp made no context")
        self._vocab_size = vocab_size
        self._prompt = _batch(load.batch, load.prompt_tokens)
        self._step = _batch(load.batch, 1)
        self._batch = load.batch

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the logits after the prompts, [B, V], which the next call overwrites."""
        tokens = np.ctypeslib.as_array(self._prompt.token, (self._prompt.n_tokens,))
        tokens[:] = [token for prompt in prompts for token in prompt]
        return self._decode(self._prompt)

    def step(self, token_ids_B: np.ndarray, position: int) -> np.ndarray:
        """One more token of every sequence."""
        np.ctypeslib.as_array(self._step.token, (self._batch,))[:] = token_ids_B
        np.ctypeslib.as_array(self._step.pos, (self._batch,))[:] = position
        return self._decode(self._step)

    def close(self) -> None:
        for batch in (self._prompt, self._step):
            llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(self._context)

    def _decode(self, batch: Any) -> np.ndarray:
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (self._batch, self._vocab_size))


def _batch(num_sequences: int, num_tokens: int) -> Any:
    """Of the same length each; logits are asked for at the last token of each."""
    batch = llama_cpp.llama_batch_init(num_sequences * num_tokens, 0, 1)
    batch.n_tokens = num_sequences * num_tokens
    for index in range(batch.n_tokens):
        sequence, position = divmod(index, num_tokens)
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence
        batch.logits[index] = position == num_tokens - 1
    return batch


def _features() -> str:
    """What it was compiled with, of what this processor has."""
    found: str = llama_cpp.llama_print_system_info().decode()
    parts = (part.rpartition(":")[2].partition("=") for part in found.split("|"))
    return " ".join(name.strip() for name, _, value in parts if value.strip() == "1")


class LlamaPeer:
    """Keeps the context of the last load. Flash attention is llama.cpp's own choice unless it is off."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._threads = options["threads"]
        self._vocab_size = options["vocab_size"]
        llama_cpp.llama_backend_init()
        self.version = f"llama-cpp-python {llama_cpp.__version__}: {_features()}"
        path = options["model"].encode()
        self._model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp did not load the model")
        self._context: Context | None = None
        self._opened: tuple[Load, str] | None = None

    def ways(self, load: Load) -> Sequence[str]:
        ways = (FLASH, NO_FLASH)
        return ways if load.batch == 1 else (*ways, *(f"{way}, {UNIFIED}" for way in ways))

    def run(self, load: Load, way: str) -> Timing:
        prompts = [prompt_ids(i, load.prompt_tokens, self._vocab_size) for i in range(load.batch)]
        times, _, _ = self._greedy(prompts, load, way)
        return Timing(times[1] - times[0], times[2] - times[1])

    def probe(self, prompt: Sequence[int], new_tokens: int) -> Probe:
        load = Load(1, len(prompt), new_tokens)
        _, logits_BV, token_ids = self._greedy([prompt], load, FLASH)
        return Probe(logits_BV[0].tolist(), token_ids)

    def _greedy(
        self, prompts: Sequence[Sequence[int]], load: Load, way: str
    ) -> tuple[list[float], np.ndarray, list[int]]:
        """Start, first tokens, end; the logits after the prompts; the tokens of the first sequence."""
        context = self._open(load, way)
        context.clear()
        times = [time.perf_counter()]
        first_BV = context.prefill(prompts)
        next_B = first_BV.argmax(-1)
        times.append(time.perf_counter())
        first_BV, found = first_BV.copy(), [int(next_B[0])]
        started = time.perf_counter()
        for index in range(load.new_tokens - 1):
            next_B = context.step(next_B, load.prompt_tokens + index).argmax(-1)
            found.append(int(next_B[0]))
        times.append(times[1] + time.perf_counter() - started)
        return times, first_BV, found

    def _open(self, load: Load, way: str) -> Context:
        if self._context is None or self._opened != (load, way):
            if self._context is not None:
                self._context.close()
            self._context = Context(self._model, self._vocab_size, self._threads, load, way)
            self._opened = load, way
        return self._context


if __name__ == "__main__":
    serve(LlamaPeer)
