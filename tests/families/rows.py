"""A model of each family of the registry, for what every family can do."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.request import Request, Returns, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from moe_model import AssembledModel
from moe_model.checkpoint.reader import Checkpoint, CheckpointWriter, GenerationDefaults
from moe_model.families import HUGGING_FACE
from moe_model.sampling.params import SamplingParams
from moe_model.versions.running_experts import RunningExperts
from tests.families.case import Case
from tests.families.cases import CASES
from tests.families.ours import PROMPTS
from tests.models import TINY, Collected, drain, write_checkpoint
from tests.moe_model.text.libraries import byte_level

NUM_TOKENS = 12
# Of no folder: it has a format of its own.
OWN_FORMAT = "modularforge"


def case_of(family: str) -> Case | None:
    """The first that is of the family."""
    return next((case for case in CASES.values() if HUGGING_FACE[case.model_type] == family), None)


def write_row(family: str, folder: Path) -> Checkpoint:
    """A model of the family, with a tokenizer whose vocabulary is smaller than the model's."""
    if family == OWN_FORMAT:
        config = replace(TINY, vocab_size=311, max_seq_len=160, n_experts=7, top_k=3)
        return Checkpoint.open(write_checkpoint(folder / "ours", config, tokenizer=_tokenizer()))
    case = case_of(family)
    assert case is not None, f"{family} has no case"
    source = case.write(case.make_model(), folder / "source")
    (source / "tokenizer.json").write_bytes(_tokenizer())
    return Checkpoint.open(source)


def _tokenizer() -> bytes:
    return byte_level().to_str().encode()


@dataclass(frozen=True)
class Row:
    """A family, one model of it, and what that says to some prompts with nothing else going on."""

    family: str
    checkpoint: Checkpoint
    config: EngineConfig

    def open_experts(
        self, config: EngineConfig, num_workers: int = 0, replicas: int = 1
    ) -> AbstractContextManager[RunningExperts]:
        workers = WorkersConfig(num_workers=num_workers, replicas=replicas, transport="in-process")
        return open_experts(self.checkpoint, config, workers)

    def run(
        self,
        asked: Sequence[Request],
        config: EngineConfig | None = None,
        num_workers: int = 0,
        replicas: int = 1,
    ) -> list[Collected]:
        """All of them in one batch."""
        config = config or self.config
        with self.open_experts(config, num_workers, replicas) as experts:
            return run(build_engine(self.checkpoint, config, experts), asked)

    def tokens(
        self, config: EngineConfig | None = None, num_workers: int = 0, replicas: int = 1
    ) -> list[list[int]]:
        return [found.token_ids for found in self.run(make_requests(), config, num_workers, replicas)]

    @cached_property
    def alone(self) -> list[list[int]]:
        tokens = self.tokens()
        assert all(map(partial(is_greedy, self.oracle), PROMPTS, tokens))
        return tokens

    @cached_property
    def oracle(self) -> AssembledModel:
        return AssembledModel.from_checkpoint(self.checkpoint.path)


def make_requests(
    returns: Returns | None = None, prompts: Sequence[Sequence[int]] = PROMPTS
) -> list[Request]:
    greedy, stop = SamplingParams(temperature=0), StopRules(NUM_TOKENS)
    return [
        Request(f"r{index}", tuple(prompt), greedy, stop, returns=returns or Returns())
        for index, prompt in enumerate(prompts)
    ]


def run(engine: Engine, asked: Sequence[Request]) -> list[Collected]:
    """What becomes of each, in their order; none may fail."""
    for request in asked:
        engine.submit(request)
    results = drain(engine)
    for found in results.values():
        assert found.last is not None
        assert found.last.error is None, found.last.error
    return [results[request.request_id] for request in asked]


def is_greedy(oracle: AssembledModel, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether each token is the best one after those before it."""
    logits_BSV, _ = oracle.forward(torch.tensor([[*prompt, *tokens[:-1]]]))
    best: list[int] = logits_BSV[0, len(prompt) - 1 :].argmax(-1).tolist()
    return best == list(tokens)


def rewritten(checkpoint: Checkpoint, dest: Path, experts: Sequence[int], rows: Sequence[int]) -> Path:
    """A checkpoint like another, in our format: with these of its experts in each layer, and these rows of
    its routers; row -1 - i is row i turned round."""
    config, places = (
        replace(checkpoint.config, n_experts=len(experts)),
        [row if row >= 0 else -1 - row for row in rows],
    )
    signs_E = torch.tensor([1.0 if row >= 0 else -1.0 for row in rows])
    shared = checkpoint.read_shared()
    for layer in config.moe_layers:
        for part in ("weight", "bias", "correction"):
            name = f"blocks.{layer}.router.{part}"
            if name in shared:
                taken = shared[name][places]
                shared[name] = taken * signs_E[:, None] if part == "weight" else taken
    with CheckpointWriter(dest, config, checkpoint.dtype, GenerationDefaults()) as writer:
        writer.write_shared(shared)
        for layer in config.moe_layers:
            for place, expert in enumerate(experts):
                writer.write_expert(layer, place, checkpoint.read_expert(layer, expert))
    return dest
