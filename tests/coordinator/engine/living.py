"""An engine whose experts are exchanged while it runs, and models that stay as they are to compare with."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.messages.request import Request
from coordinator.engine.recording.recorder import RoutingRecorder
from coordinator.engine.versions.model_versions import ModelVersions
from moe_model.families import family_of
from moe_model.kernels.base import Kernels
from moe_model.layers.dense import Gate
from moe_model.layers.router import RouterWeights, Routing
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.model import Model
from moe_model.sampling.params import SamplingParams
from moe_model.versions.expert_versions import Catalog, ExpertModule
from moe_model.versions.local_experts import LocalExperts
from moe_model.versions.model_version import RoutedLayer
from tests.cache_sizes import whole_sizes
from tests.models import (
    TINY,
    Collected,
    Weights,
    collect,
    drain,
    make_cache,
    make_request,
    random_weights,
    tiny_engine,
)

CONFIG = replace(TINY, max_seq_len=24)
OLD, OTHER = random_weights(CONFIG), random_weights(CONFIG, seed=9)
LAYER = 1
GATE = f"blocks.{LAYER}.router.weight"
COMMON = (3, 1, 4, 1, 5)
LONG = tuple(range(10, 24))


class Living:
    """An engine whose experts are exchanged as the test says."""

    def __init__(
        self,
        weights: Weights,
        kernels: Kernels,
        num_blocks: int = 64,
        step: int = 64,
        overlap: int | None = None,
        recorder: RoutingRecorder | None = None,
    ) -> None:
        self.kernels, self.weights = kernels, dict(weights.experts)
        family = family_of(CONFIG)
        self.experts = LocalExperts(
            Catalog.of_checkpoint(CONFIG),
            kernels,
            lambda m: family.build_expert(CONFIG, self.weights[m.key], kernels),
        )
        model = Model(CONFIG, family.build_shared(CONFIG, weights.shared, kernels), self.experts)
        self.versions = ModelVersions(model, self.experts)
        cache = make_cache(CONFIG, num_blocks, 4, kernels)
        cut = None if overlap is None else Overlap(overlap)
        runner = ModelRunner(
            *(model, cache, attention_plan(kernels), cut),
            versions=self.versions,
            is_recorded=None if recorder is None else lambda: recorder.is_on,
        )
        scheduler = Scheduler(whole_sizes(num_blocks), 8, step)
        self.engine = Engine(scheduler, runner, CONFIG.max_seq_len, versions=self.versions, recorder=recorder)
        self.results: dict[str, Collected] = {}

    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            collect(self.engine.step(), self.results)

    def drain(self) -> dict[str, Collected]:
        while self.engine.has_work:
            self.step(1)
        self.engine.check_integrity()
        return self.results

    def change(self, modules: Sequence[ExpertModule], weights: RouterWeights, layer: int = LAYER) -> None:
        newest = self.versions.newest
        router = self.kernels.router(SoftmaxOfTopK(), weights, CONFIG.top_k)
        routed = RoutedLayer(tuple(modules), Gate(router, weights))
        self.engine.switch(newest.followed_by(layer, routed))

    def load(self, module: ExpertModule, tensors: dict[str, Tensor]) -> ExpertModule:
        self.weights[module.key] = tensors
        self.experts.prepare(module)
        return module

    def replace(self, expert: int, tensors: dict[str, Tensor], slot: int, layer: int = LAYER) -> None:
        routed = self.versions.newest.layers[layer]
        module = self.load(ExpertModule(layer, slot, expert, 1 + slot), tensors)
        self.change(
            [module if m.expert == expert else m for m in routed.modules], routed.router_weights, layer
        )

    def add(self, tensors: dict[str, Tensor], row_D: Tensor) -> None:
        routed = self.versions.newest.layers[LAYER]
        expert = routed.experts[-1] + 1
        module = self.load(ExpertModule(LAYER, expert, expert), tensors)
        self.change([*routed.modules, module], routed.router_weights.followed_by(RouterWeights(row_D[None])))

    def remove(self, expert: int) -> None:
        routed = self.versions.newest.layers[LAYER]
        stay = [column for column, each in enumerate(routed.experts) if each != expert]
        self.change([routed.modules[column] for column in stay], routed.router_weights.take(stay))

    @property
    def num_live(self) -> int:
        return len(self.versions.live)


class Layers:
    """Experts of layers that may have different numbers of them."""

    in_c = None

    def __init__(self, experts: Sequence[Sequence[dict[str, Tensor]]], kernels: Kernels) -> None:
        family = family_of(CONFIG)
        self._banks = [
            kernels.bank({(layer, e): family.build_expert(CONFIG, t, kernels) for e, t in enumerate(tensors)})
            for layer, tensors in enumerate(experts)
        ]

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        return self._banks[layer].run_tokens(layer, x_TD, routing)

    begin = forward

    def finish(self, begun: Tensor) -> Tensor:
        return begun

    def take_over(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        raise AssertionError("C runs no experts of these")


class Alone:
    """A model that stays as it is, and what it says to each request on its own, without a cache of others."""

    def __init__(self, weights: Weights, kernels: Kernels) -> None:
        self.kernels = kernels
        self.shared = dict(weights.shared)
        self.experts = [
            [weights.experts[layer, e] for e in range(CONFIG.n_experts)] for layer in range(CONFIG.n_layers)
        ]

    def replace(self, expert: int, tensors: dict[str, Tensor], layer: int = LAYER) -> "Alone":
        self.experts[layer][expert] = tensors
        return self

    def add(self, tensors: dict[str, Tensor], row_D: Tensor) -> "Alone":
        self.experts[LAYER].append(tensors)
        self.shared[GATE] = torch.cat([self.shared[GATE], row_D[None]])
        return self

    def remove(self, place: int) -> "Alone":
        del self.experts[LAYER][place]
        gate_ED = self.shared[GATE]
        self.shared[GATE] = torch.cat([gate_ED[:place], gate_ED[place + 1 :]])
        return self

    def tokens(self, request: Request) -> list[int]:
        return self.run(request).token_ids

    def run(self, request: Request) -> Collected:
        shared = family_of(CONFIG).build_shared(CONFIG, self.shared, self.kernels)
        engine = tiny_engine(Model(CONFIG, shared, Layers(self.experts, self.kernels)), kernels=self.kernels)
        engine.submit(request)
        return drain(engine)[request.request_id]


def requests(name: str, count: int = 4) -> list[Request]:
    """Greedy and seeded, which begin alike, some of them at once with others."""
    return [
        make_request(
            f"{name}{n}",
            (*COMMON, *range(n)),
            9,
            SamplingParams(temperature=0) if n % 2 else SamplingParams(1.2, top_k=9, seed=n),
        )
        for n in range(count)
    ]


def submit(living: Living, some: Sequence[Request]) -> None:
    for request in some:
        living.engine.submit(request)


def assert_equal(living: Living, some: Sequence[Request], alone: Alone) -> None:
    for request in some:
        assert living.results[request.request_id].token_ids == alone.tokens(request), request.request_id
