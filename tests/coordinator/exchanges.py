"""An exchange over a real engine in this thread, and checkpoints that are what a model becomes."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coordinator.config.engine import EngineConfig
from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.request import Request
from coordinator.engine.versions.exchange import ExpertExchange, SwitchEngine
from coordinator.server.build_engine import build_engine, expert_exchange
from coordinator.server.compute import dtype_of
from moe_model.checkpoint.reader import Checkpoint, CheckpointWriter, GenerationDefaults
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.base import Router
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.router import RouterWeights
from moe_model.loading import load_local_experts
from moe_model.names import WeightForm
from moe_model.versions.local_experts import LocalExperts
from moe_model.versions.model_version import ModelVersion
from tests.models import TINY, drain

CONFIG = replace(TINY, max_seq_len=24)
# Of a router, as far as a family's has them.
PARTS = ("weight", "bias", "correction")


def engine_config(kernels: KernelChoice, dtype: torch.dtype) -> EngineConfig:
    return EngineConfig(
        dtype="bfloat16" if dtype is torch.bfloat16 else "float32",
        kernels=kernels,
        num_threads=1,
        block_size=4,
        kv_cache_bytes=1 << 20,
    )


@dataclass
class Changing:
    """A checkpoint that runs, an engine, and the exchange that changes it."""

    checkpoint: Checkpoint
    config: EngineConfig
    experts: LocalExperts
    engine: Engine
    exchange: ExpertExchange

    @classmethod
    def open(
        cls,
        path: Path,
        kernels: KernelChoice = "torch",
        dtype: torch.dtype = torch.float32,
        form: WeightForm = "model",
    ) -> Self:
        checkpoint = Checkpoint.open(path)
        config = replace(engine_config(kernels, dtype), expert_dtype=form)
        experts = load_local_experts(checkpoint, dtype, "cpu", choose_kernels(kernels, "cpu", 1), form=form)
        engine = build_engine(checkpoint, config, experts)
        exchange = expert_exchange(checkpoint, config, experts, engine, at_once(engine))
        return cls(checkpoint, config, experts, engine, exchange)

    def state(self) -> object:
        """All that a change that fails must leave alone."""
        versions = self.engine.versions
        assert versions is not None
        return self.exchange.list(), self.experts.keys, versions.live, self.exchange.status()


def at_once(engine: Engine) -> SwitchEngine:
    """Switches the engine in the caller's thread."""

    def switch(version: ModelVersion) -> Future[None]:
        future: Future[None] = Future()
        try:
            engine.switch(version)
        except Exception as error:  # noqa: BLE001 - as an engine's thread does
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    return switch


def tokens_of(path: Path, config: EngineConfig, requests: Sequence[Request]) -> dict[str, list[int]]:
    """What a checkpoint answers to each request alone."""
    checkpoint = Checkpoint.open(path)
    kernels = choose_kernels(config.kernels, "cpu", 1)
    found = {}
    for request in requests:
        experts = load_local_experts(checkpoint, dtype_of(config), "cpu", kernels)
        engine = build_engine(checkpoint, config, experts)
        engine.submit(request)
        found[request.request_id] = drain(engine)[request.request_id].token_ids
    return found


def rewritten(
    source: Path,
    dest: Path,
    experts: Mapping[ExpertKey, Path],
    rows: Sequence[Sequence[int | Path]] | None = None,
) -> Path:
    """A checkpoint like another: with these files for experts, and in each layer these rows of the router,
    each that of an expert of the source or one in a file."""
    old = Checkpoint.open(source)
    config = old.config if rows is None else replace(old.config, n_experts=len(rows[0]))
    shared = old.read_shared()
    rows = rows or [list(config.experts_of(layer)) for layer in range(config.n_layers)]
    with CheckpointWriter(dest, config, old.dtype, GenerationDefaults()) as writer:
        for layer, wanted in enumerate(rows):
            for part in PARTS:
                name = f"blocks.{layer}.router.{part}"
                if name in shared:
                    shared[name] = _rows_of(shared[name], wanted, f"router.{part}")
            for place, row in enumerate(wanted):
                if (layer, place) in experts:
                    tensors = load_file(experts[layer, place])
                else:
                    assert isinstance(row, int)
                    tensors = old.read_expert(layer, row)
                writer.write_expert(layer, place, tensors)
        writer.write_shared(shared)
    return dest


def _rows_of(values: Tensor, wanted: Sequence[int | Path], name: str) -> Tensor:
    shape = values.shape[1:]
    return torch.stack(
        [values[row] if isinstance(row, int) else load_file(row)[name].view(shape) for row in wanted]
    )


def module_of(checkpoint: Path, layer: int, expert: int) -> str:
    """The file of one module."""
    return str(checkpoint / "experts" / f"layer_{layer:04d}" / f"expert_{expert:04d}.safetensors")


def row_file(path: Path, seed: int, *more: str) -> str:
    """A random row of a router, and one value of each of `more` of its parts."""
    generator = torch.Generator().manual_seed(seed)
    row = {"router.weight": torch.randn(CONFIG.d_model, generator=generator)}
    save_file(row | {f"router.{part}": torch.randn(1, generator=generator) for part in more}, path)
    return str(path)


def torch_router(config: ModelConfig) -> Callable[[RouterWeights], Router]:
    kernels = choose_kernels("torch", "cpu")
    return lambda weights: family_of(config).build_router(config, weights, kernels)
