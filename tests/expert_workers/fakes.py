"""Workers over experts made in memory, and a transport whose workers misbehave when told to.

Shapes: T tokens, D d_model, E experts, K experts per token.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch

from expert_workers.dispatch import PoolOptions
from expert_workers.in_process import InProcessTransport
from expert_workers.members import Expected
from expert_workers.module_source import Opened
from expert_workers.placement import Placement, place
from expert_workers.pool import ExpertPool
from expert_workers.pool_stats import PoolObserver
from expert_workers.transport import Failure, FailureReason, Pending
from expert_workers.wire import ExpertCall, ExpertReply, dtype_name
from expert_workers.worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.config import ModelConfig
from moe_model.dispatch import Expert, ExpertKey
from moe_model.errors import CheckpointError
from moe_model.experts import LocalExperts
from moe_model.families import family_of
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import KernelChoice
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.modules import ExpertModule, checkpoint_modules
from moe_model.router import Routing

T = TypeVar("T")
TORCH = TorchKernels()
Fault = Callable[[ExpertCall, ExpertReply], ExpertReply | Failure]


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
    config: ModelConfig, key: ExpertKey, dtype: torch.dtype = torch.float32, kernels: Kernels = TORCH
) -> Expert:
    """The same for the same key, whatever its slot."""
    family, generator = family_of(config), torch.Generator().manual_seed(1000 * key[0] + key[1])
    tensors = {name: tensor.to(dtype) for name, tensor in family.init_expert(config, generator).items()}
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
        return make_expert(self._config, module.key, self._dtype, self._kernels), 100


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
    return LocalExperts(kernels.bank(make_experts(config, dtype, kernels)))


@dataclass(frozen=True)
class FakePending:
    rank: int
    outcome: Any


class FakeTransport:
    """Real workers behind scripted faults: each call of a rank uses up its next fault, if there is one."""

    def __init__(self, workers: dict[int, ExpertWorker]) -> None:
        self._inner = InProcessTransport(workers)
        self.faults: dict[int, deque[Fault]] = defaultdict(deque)
        self.describes: dict[int, Callable[[WorkerInfo], WorkerInfo | Failure]] = {}
        self.calls: list[tuple[int, ExpertCall]] = []
        self.num_describes = 0
        self.deadlines: list[float] = []

    @property
    def ranks(self) -> Sequence[int]:
        return self._inner.ranks

    def send(self, rank: int, call: ExpertCall) -> Pending[ExpertReply]:
        self.calls.append((rank, call))
        [outcome] = self._inner.gather([self._inner.send(rank, call)], 0.0)
        if self.faults[rank] and isinstance(outcome, ExpertReply):
            return FakePending(rank, self.faults[rank].popleft()(call, outcome))
        return FakePending(rank, outcome)

    def describe(self, rank: int) -> Pending[WorkerInfo]:
        self.num_describes += 1
        [outcome] = self._inner.gather([self._inner.describe(rank)], 0.0)
        assert isinstance(outcome, WorkerInfo)
        return FakePending(rank, self.describes.get(rank, _as_it_is)(outcome))

    def gather(self, pendings: Sequence[Pending[T]], deadline: float) -> list[T | Failure]:
        self.deadlines.append(deadline)
        return [cast("FakePending", pending).outcome for pending in pendings]

    def close(self) -> None:
        pass


def _as_it_is(info: WorkerInfo) -> WorkerInfo:
    return info


def fails(reason: FailureReason) -> Fault:
    return lambda call, reply: Failure(reason, f"told to be {reason}")


def changes(**fields: Any) -> Fault:
    return lambda call, reply: reply._replace(**fields)


def make_pool(
    config: ModelConfig,
    num_workers: int,
    replicas: int,
    dtype: torch.dtype = torch.float32,
    retry_interval: float = 60.0,
    observer: PoolObserver | None = None,
) -> tuple[ExpertPool, FakeTransport]:
    placement = place(config.n_layers, config.n_experts, num_workers, replicas)
    workers = {rank: make_worker(config, placement, rank, dtype) for rank in range(num_workers)}
    transport = FakeTransport(workers)
    options = PoolOptions(retry_interval=retry_interval)
    expected = Expected(dtype_name(dtype), "sums")
    return ExpertPool.connect(placement, transport, options, expected, observer), transport
