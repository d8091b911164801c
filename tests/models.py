"""Small models in memory for any shape, engines over them, and where the golden data is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.engine import Engine, Runner
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from moe_model import AssembledModel, ModelConfig
from moe_model.checkpoint.reader import CheckpointWriter, GenerationDefaults
from moe_model.families import family_of
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import step_program
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.model import Model
from moe_model.sampling.params import SamplingParams
from moe_model.versions.expert_versions import Catalog
from moe_model.versions.local_experts import LocalExperts
from tests.cache_sizes import sizes_of

TORCH = TorchKernels()
GOLDEN = Path(__file__).parent / "data" / "modularforge-tiny"

TINY = ModelConfig(
    d_model=16,
    n_heads=2,
    n_layers=2,
    d_ff=24,
    n_experts=4,
    top_k=2,
    vocab_size=50,
    max_seq_len=12,
    tie_embedding=False,
)


@dataclass(frozen=True)
class Weights:
    """All tensors of a model under our names."""

    shared: dict[str, Tensor]
    experts: dict[ExpertKey, dict[str, Tensor]]


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Every tensor random, norms and biases too, so that a mix-up of any two shows."""
    generator = torch.Generator().manual_seed(seed)
    family = family_of(config)
    keys = [(layer, expert) for layer in config.moe_layers for expert in config.experts_of(layer)]
    return Weights(
        _randoms(family.shared_shapes(config), generator),
        {key: _randoms(family.expert_shapes(config), generator) for key in keys},
    )


def _randoms(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    return {name: _random(name, shape, generator) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
    return noise if name == "embedding.weight" else noise * (2 / sqrt(shape[1]))


def build_experts(config: ModelConfig, weights: Weights, kernels: Kernels = TORCH) -> dict[ExpertKey, Expert]:
    family = family_of(config)
    return {key: family.build_expert(config, tensors, kernels) for key, tensors in weights.experts.items()}


def local_experts(
    config: ModelConfig, experts: Mapping[ExpertKey, Expert], kernels: Kernels = TORCH
) -> LocalExperts:
    """Experts that a test has made, in this process."""
    catalog = Catalog.of_checkpoint(config)
    return LocalExperts(catalog, kernels, lambda module: experts[module.key])


def build_model(config: ModelConfig, weights: Weights, kernels: Kernels = TORCH) -> Model:
    shared = family_of(config).build_shared(config, weights.shared, kernels)
    experts = local_experts(config, build_experts(config, weights, kernels), kernels)
    return Model(config, shared, experts, step_program(kernels, shared))


def random_model(config: ModelConfig = TINY, seed: int = 0, kernels: Kernels = TORCH) -> Model:
    return build_model(config, random_weights(config, seed), kernels)


def random_reference(config: ModelConfig = TINY, seed: int = 0) -> AssembledModel:
    return AssembledModel(random_model(config, seed))


def write_checkpoint(
    dest: Path,
    config: ModelConfig = TINY,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: bytes | None = None,
) -> Path:
    """A random model as a checkpoint of ours."""
    weights = random_weights(config, seed)
    with CheckpointWriter(dest, config, dtype, GenerationDefaults()) as writer:
        writer.write_shared({name: tensor.to(dtype) for name, tensor in weights.shared.items()})
        for (layer, expert), tensors in weights.experts.items():
            writer.write_expert(layer, expert, {name: tensor.to(dtype) for name, tensor in tensors.items()})
        if tokenizer is not None:
            writer.write_tokenizer(tokenizer)
    return dest


def make_cache(
    config: ModelConfig = TINY,
    num_blocks: int = 20,
    block_size: int = 4,
    kernels: Kernels = TORCH,
    dtype: torch.dtype = torch.float32,
) -> KVCache:
    """A cache of a family's spec in the layout of the kernels."""
    spec = family_of(config).cache_spec(config)
    return KVCache(spec, sizes_of(config, num_blocks, block_size), dtype, layout=kernels.cache_layout)


def tiny_engine(
    model: Model,
    num_blocks: int = 64,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_step_tokens: int = 64,
    runner: Runner | None = None,
    kernels: Kernels = TORCH,
) -> Engine:
    """An engine over a small cache; `runner` takes the place of the real one."""
    spec = family_of(model.config).cache_spec(model.config)
    sizes = sizes_of(model.config, num_blocks, block_size, max_num_seqs, max_step_tokens)
    cache = KVCache(spec, sizes, layout=kernels.cache_layout)
    scheduler = Scheduler(sizes, max_num_seqs, max_step_tokens)
    plan = attention_plan(kernels)
    return Engine(scheduler, runner or ModelRunner(model, cache, plan), model.config.max_seq_len)


GREEDY = SamplingParams(temperature=0)


def make_request(
    request_id: str = "r",
    prompt_ids: tuple[int, ...] = (1, 2, 3),
    max_tokens: int = 4,
    sampling: SamplingParams = GREEDY,
    overflow: ContextOverflow = ContextOverflow.SLIDE,
) -> Request:
    return Request(
        request_id, prompt_ids, sampling, StopRules(max_tokens=max_tokens, context_overflow=overflow)
    )


@dataclass
class Collected:
    """All that an engine said about one sequence."""

    token_ids: list[int]
    last: Output | None = None
    outputs: list[Output] = field(default_factory=list)


def collect(outputs: list[Output], into: dict[str, Collected]) -> None:
    """Appends a step's outputs; nothing may follow a sequence's last. Sequence i > 0 of r is r#i."""
    for output in outputs:
        name = output.request_id + (f"#{output.index}" if output.index else "")
        collected = into.setdefault(name, Collected([]))
        assert collected.last is None, f"an output after the last of {name}"
        collected.token_ids += output.token_ids
        collected.outputs.append(output)
        if output.is_last:
            collected.last = output


def drain(engine: Engine, max_steps: int = 2000) -> dict[str, Collected]:
    """Steps until there is no work."""
    result: dict[str, Collected] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return result
        collect(engine.step(), result)
    raise AssertionError(f"still working after {max_steps} steps: {engine.stats()}")


def expected_tokens(reference: AssembledModel, request: Request) -> list[int]:
    """What the oracle generates for a request that only max_tokens ends. Sequence index 0."""
    count = request.stop.max_tokens
    if request.stop.context_overflow is ContextOverflow.STOP:
        count = min(count, reference.config.max_seq_len - len(request.prompt_ids))
    sampling = request.sampling
    ids = reference.generate(
        torch.tensor(request.prompt_ids),
        max_new_tokens=count,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        selection=request.experts,
    )
    new_ids: list[int] = ids[0, len(request.prompt_ids) :].tolist()
    return new_ids
