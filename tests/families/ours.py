"""What this product says of a folder: through the model alone, and through the engine with all around it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.messages.request import Request, Returns, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from moe_model.checkpoint.importer import import_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.sampling.params import SamplingParams
from moe_model.versions.running_experts import RunningExperts
from tests.models import Collected, collect

# Chunks of the same size whatever the clock says: torch's sums, unlike ours, depend on it in their last bits.
CONFIG = EngineConfig(block_size=4, max_num_seqs=6, max_step_tokens=24, max_gap_ms=None, num_threads=1)
NUM_TOKENS = 64
# The second one is longer than a step, and than any window of the tests.
PROMPTS = ((1, 5, 9), (1, *range(20, 60)), (7,))


def imported(source: Path, folder: Path) -> Checkpoint:
    """A folder that transformers wrote, as a checkpoint of our own format."""
    import_checkpoint(source, folder / "ours")
    return Checkpoint.open(folder / "ours")


@dataclass(frozen=True)
class Generated:
    """The greedy continuation of a prompt, with the log probability of each token, and the experts of every
    token but the last, `routed_TLK`, best first."""

    prompt: tuple[int, ...]
    tokens: list[int]
    logprobs: list[float]
    routed_TLK: NDArray[np.int64]

    @property
    def ids(self) -> list[int]:
        """All tokens that went through the model."""
        return [*self.prompt, *self.tokens[:-1]]


def greedy_request(name: str, prompt: Sequence[int], num_tokens: int = NUM_TOKENS) -> Request:
    returns = Returns(logprobs=0, routed_experts=True)
    return Request(name, tuple(prompt), SamplingParams(temperature=0), StopRules(num_tokens), returns=returns)


def generate(
    checkpoint: Checkpoint,
    config: EngineConfig = CONFIG,
    num_workers: int = 0,
    replicas: int = 1,
    prompts: Sequence[Sequence[int]] = PROMPTS,
) -> list[Generated]:
    """All prompts in one batch; workers are in this process."""
    workers = WorkersConfig(num_workers=num_workers, replicas=replicas, transport="in-process")
    with open_experts(checkpoint, config, workers) as experts:
        return generate_over(checkpoint, config, experts, prompts)


def generate_over(
    checkpoint: Checkpoint,
    config: EngineConfig,
    experts: RunningExperts,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    before_step: Callable[[int], None] = lambda _step: None,
) -> list[Generated]:
    engine = build_engine(checkpoint, config, experts)
    for index, prompt in enumerate(prompts):
        engine.submit(greedy_request(f"r{index}", prompt))
    results: dict[str, Collected] = {}
    for step in count():
        if not engine.has_work:
            break
        before_step(step)
        collect(engine.step(), results)
    return [generated(prompt, results[f"r{index}"]) for index, prompt in enumerate(prompts)]


def generated(prompt: Sequence[int], found: Collected) -> Generated:
    assert found.last is not None
    assert found.last.error is None, found.last.error
    pieces = [output.prompt for output in found.outputs if output.prompt is not None]
    traces = [trace for piece in pieces for trace in piece.routed_experts]
    traces += [trace for output in found.outputs for trace in output.routed_experts]
    logprobs = [each.logprob for output in found.outputs for each in output.logprobs]
    routed_TLK = np.concatenate([trace.ids_TLK for trace in traces]).astype(np.int64)
    return Generated(tuple(prompt), found.token_ids, logprobs, routed_TLK)
