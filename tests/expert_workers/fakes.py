"""Workers over experts made in memory, and pools of them.

Shapes: T tokens, D d_model, E experts, K experts per token.
"""

from dataclasses import replace
from typing import Any

import torch

from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.pool_stats import DispatchObserver
from expert_workers.dispatch.routes import Routes
from expert_workers.placement.placement import Placement, Share, place
from expert_workers.wire import ExpertCall
from expert_workers.worker.expert_source import Opened
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import KernelChoice
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.layers.expert_slices import WHOLE, ExpertSlice
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog, ExpertModule, checkpoint_modules
from moe_model.versions.local_experts import LocalExperts
from tests.expert_workers.fake_links import FakeLink, FakePlane, FakeRescuer, GivenLinks, routes_over
from tests.models import local_experts

TORCH = TorchKernels()


def make_config(n_layers: int = 2, n_experts: int = 5) -> ModelConfig:
    return ModelConfig(
        d_model=16, n_heads=2, n_layers=n_layers, d_ff=24, n_experts=n_experts, top_k=1, vocab_size=32
    )


def make_experts(
    config: ModelConfig, dtype: torch.dtype = torch.float32, kernels: Kernels = TORCH
) -> dict[ExpertKey, Expert]:
    """The same ones every time."""
    return {
        (layer, expert): make_expert(config, (layer, expert), dtype, kernels)
        for layer in range(config.n_layers)
        for expert in range(config.n_experts)
    }


def make_expert(
    config: ModelConfig,
    key: ExpertKey,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = TORCH,
    part: ExpertSlice = WHOLE,
) -> Expert:
    """The same for the same key, whatever its slot."""
    family, generator = family_of(config), torch.Generator().manual_seed(1000 * key[0] + key[1])
    tensors = {name: tensor.to(dtype) for name, tensor in family.init_expert(config, generator).items()}
    # Biases are zero at first, and would not be missed.
    tensors = {name: t if t.dim() > 1 else t + 0.1 for name, t in tensors.items()}
    if part != WHOLE:
        tensors = family.cut_expert(tensors, part)
    return family.build_expert(config, tensors, kernels)


class FakeSource:
    """A ModuleSource of modules made in memory, of 100 bytes; those in `broken` cannot be read."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, kernels: Kernels) -> None:
        self._config = config
        self._dtype = dtype
        self._kernels = kernels
        self.broken: set[ExpertKey] = set()
        self.reads: list[ExpertKey] = []

    def open(self) -> Opened:
        rows_dtype = self._kernels.hidden_dtype(self._dtype)
        return Opened("sums", self._config.d_model, rows_dtype, self._kernels)

    def read(self, module: ExpertModule) -> tuple[Expert, int]:
        if module.key in self.broken:
            raise CheckpointError(f"file {module.slot}: is broken")
        self.reads.append(module.key)
        key, part = module.whole.key, module.part
        return make_expert(self._config, key, self._dtype, self._kernels, part), 100


def make_worker(
    config: ModelConfig,
    placement: Placement,
    rank: int,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = TORCH,
) -> ExpertWorker:
    worker = ExpertWorker(make_spec(rank, kernels, dtype), FakeSource(config, dtype, kernels))
    worker.load(checkpoint_modules(placement.experts_of(rank)))
    return worker


def make_spec(rank: int, kernels: Kernels = TORCH, dtype: torch.dtype = torch.float32) -> WorkerSpec:
    choice: KernelChoice = "torch" if kernels.name == "torch" else "native"
    return WorkerSpec(rank, "", dtype, kernels=choice)


def make_info(**changes: Any) -> WorkerInfo:
    """Of a worker that holds nothing."""
    return replace(ExpertWorker(WorkerSpec(0, "")).describe(), **changes)


def make_routing(num_tokens: int, n_experts: int, top_k: int, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(num_tokens, n_experts, generator=generator)
    top_TK, expert_ids_TK = logits_TE.topk(top_k, dim=-1)
    return Routing(torch.softmax(top_TK, dim=-1), expert_ids_TK, logits_TE)


def make_rows(num_tokens: int, config: ModelConfig, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(num_tokens, config.d_model, generator=generator).to(dtype)


def make_local(
    config: ModelConfig, dtype: torch.dtype = torch.float32, kernels: Kernels = TORCH
) -> LocalExperts:
    return local_experts(config, make_experts(config, dtype, kernels), kernels)


def make_sliced(
    config: ModelConfig, num_slices: int, dtype: torch.dtype = torch.float32, kernels: Kernels = TORCH
) -> LocalExperts:
    """The same experts in slices."""

    def load(module: ExpertModule) -> Expert:
        return make_expert(config, module.whole.key, dtype, kernels, module.part)

    return LocalExperts(Catalog.of_checkpoint(config), kernels, load, num_slices)


def placed(n_layers: int, n_experts: int, num_workers: int, replicas: int = 1) -> Placement:
    """Of all experts over equal workers."""
    keys = [(layer, expert) for layer in range(n_layers) for expert in range(n_experts)]
    return place(keys, [Share(rank) for rank in range(num_workers)], replicas)


def dealt(n_layers: int, n_experts: int, num_workers: int) -> Placement:
    """One after the other, for tests that must know who holds what."""
    keys = [(layer, expert) for layer in range(n_layers) for expert in range(n_experts)]
    return Placement({key: (number % num_workers,) for number, key in enumerate(keys)})


class PoolWorld:
    """What is around a pool: its workers, the links to them, and who is told of losses."""

    def __init__(self, config: ModelConfig, placement: Placement, dtype: torch.dtype) -> None:
        self.placement = placement
        self.plane = FakePlane()
        self.rescuer = FakeRescuer()
        self.links = {
            rank: FakeLink(rank, make_worker(config, placement, rank, dtype), self.plane)
            for rank in sorted(placement.ranks)
        }
        self.pool: ExpertPool | None = None
        self._version = 0

    @property
    def calls(self) -> list[tuple[int, ExpertCall]]:
        """All of the links that there are now."""
        return [(link.rank, call) for link in self.links.values() for call in link.calls]

    def forget_calls(self) -> None:
        for link in self.links.values():
            link.calls.clear()

    def renew(self, *ranks: int) -> None:
        """Other links to the same workers, as if their processes had been started again."""
        for rank in ranks:
            self.links[rank] = FakeLink(rank, self.links[rank].worker, self.plane)

    def routes(self, *without: int) -> Routes:
        """To all links but some."""
        self._version += 1
        links = {rank: link for rank, link in self.links.items() if rank not in without}
        holders = {
            key: tuple(rank for rank in ranks if rank in links)
            for key, ranks in self.placement.holders.items()
        }
        assert self.pool is not None
        return routes_over(self.pool, self._version, links, holders)

    def publish(self) -> None:
        """Routes to all links. Any thread."""
        assert self.pool is not None
        self.pool.publish(self.routes())


def make_pool(
    config: ModelConfig,
    num_workers: int,
    replicas: int,
    dtype: torch.dtype = torch.float32,
    options: PoolOptions | None = None,
    observer: DispatchObserver | None = None,
) -> tuple[ExpertPool, PoolWorld]:
    """Of the checkpoint's experts, with routes to all of them."""
    world = PoolWorld(config, placed(config.n_layers, config.n_experts, num_workers, replicas), dtype)
    catalog = Catalog.of_checkpoint(config)
    pool = ExpertPool(catalog, GivenLinks(world.plane), options, world.rescuer, observer)
    world.pool = pool
    world.publish()
    return pool, world
