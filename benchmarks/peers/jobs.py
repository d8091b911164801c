"""What the benchmark and its peers say to each other: plain values, one JSON line each.

Both environments import this module, so it knows nothing but the standard library.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Ids below it are special in ModularForge's vocabulary: padding, unknown, begin, end.
FIRST_PLAIN_ID = 4


@dataclass(frozen=True, slots=True)
class MixtralSize:
    """A Mixtral: RMSNorm, rotary positions, SwiGLU experts without biases, tied embedding."""

    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_experts: int
    top_k: int
    vocab_size: int
    max_seq_len: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def num_params(self) -> int:
        return self._num_params(self.n_experts)

    @property
    def num_active_params(self) -> int:
        """What one token meets, the whole tied embedding included, as its head needs it."""
        return self._num_params(self.top_k)

    def _num_params(self, experts_per_layer: int) -> int:
        attention = 4 * self.d_model**2
        router = self.n_experts * self.d_model
        experts = experts_per_layer * 3 * self.d_model * self.d_ff
        per_layer = attention + router + experts + 2 * self.d_model
        return self.vocab_size * self.d_model + self.n_layers * per_layer + self.d_model


@dataclass(frozen=True, slots=True)
class Load:
    """`batch` sequences at once, all of the same lengths."""

    batch: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds until every sequence has its first token, and from there to the end."""

    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What a peer computes for one prompt: the logits after it, and the greedy continuation."""

    logits_V: Sequence[float]
    token_ids: Sequence[int]


def prompt_ids(index: int, num_tokens: int, vocab_size: int) -> list[int]:
    """The prompt of one sequence; `benchmarks.engine` gives ours the same."""
    return [(37 * index + 11 * i) % (vocab_size - FIRST_PLAIN_ID) + FIRST_PLAIN_ID for i in range(num_tokens)]
