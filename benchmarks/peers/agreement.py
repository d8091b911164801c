"""Whether all systems compute the model they were given: each against transformers in float32."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.peers.jobs import Probe, prompt_ids
from benchmarks.peers.process import PeerError

NUM_PROMPTS = 5
PROMPT_TOKENS = 32
NEW_TOKENS = 8
# 8-bit weights cost 5 %; a wrong rotation of the positions 86 %, one wrong expert of five in each layer 64 %.
MAX_ERROR = 0.1
# 4-bit weights cost 46 % of random models, whose routers choose others; 8 bits check the same tensors.
MAX_ERROR_OF_4_BITS = 0.55
# How many times as far off as transformers itself, in the same dtype, ours may be: both round, differently.
MAX_TIMES = 2.0
# So much is always allowed: two right systems that add in other orders differ by less, in float32 as well.
LEAST_ERROR = 1e-4


class Probed(Protocol):
    """A system that says what it computes."""

    def probe(self, prompt: Sequence[int], new_tokens: int) -> Probe: ...


@dataclass(frozen=True, slots=True)
class Agreement:
    """The median relative error of the logits after a prompt; greedy tokens alike, before the first that is
    not, and all."""

    logits_error: float
    num_equal: int
    num_tokens: int


def probes(peer: Probed, vocab_size: int) -> list[Probe]:
    """Other prompts than those that are measured, each of its own."""
    prompts = [prompt_ids(1000 * (i + 1), PROMPT_TOKENS, vocab_size) for i in range(NUM_PROMPTS)]
    return [peer.probe(prompt, NEW_TOKENS) for prompt in prompts]


def compare(found: Sequence[Probe], reference: Sequence[Probe]) -> Agreement:
    pairs = list(zip(found, reference, strict=True))
    errors = [math.dist(a.logits_V, b.logits_V) / math.hypot(*b.logits_V) for a, b in pairs]
    equal = [_num_equal(a.token_ids, b.token_ids) for a, b in pairs]
    return Agreement(statistics.median(errors), sum(equal), sum(len(b.token_ids) for _, b in pairs))


def check(systems: Mapping[str, Probed], reference: Sequence[Probe], vocab_size: int) -> dict[str, Agreement]:
    """By peer. Raises PeerError when one computes something else."""
    found = {name: compare(probes(one, vocab_size), reference) for name, one in systems.items()}
    for name, agreement in found.items():
        if not agreement.logits_error <= (MAX_ERROR_OF_4_BITS if name.endswith("q4_0") else MAX_ERROR):
            raise PeerError(f"{name} computes another model: its logits are {agreement.logits_error:.0%} off")
    return found


def check_alike(ours: Agreement, theirs: Agreement) -> None:
    """`theirs`: of transformers in the dtype of ours. Raises PeerError where ours is not as near."""
    allowed = max(MAX_TIMES * theirs.logits_error, LEAST_ERROR)
    if not ours.logits_error <= allowed:
        raise PeerError(
            f"ours is {ours.logits_error:.2%} off, transformers in the same dtype {theirs.logits_error:.2%}"
        )


def _num_equal(a: Sequence[int], b: Sequence[int]) -> int:
    """Only up to the first difference: from there on the contexts differ."""
    differs = [x != y for x, y in zip(a, b, strict=True)]
    return differs.index(True) if any(differs) else len(differs)
