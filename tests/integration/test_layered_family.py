"""A family with dense layers and a shared expert, through checkpoint, model, engine, workers and exchange."""

from pathlib import Path

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.messages.errors import ExchangeError
from coordinator.engine.messages.request import Request, Returns, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from moe_model import AssembledModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.families import REGISTRY
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.sampling.params import SamplingParams
from tests.coordinator.exchanges import Changing
from tests.layered_family import LAYERED, NAME, plain_logits
from tests.models import drain, expected_tokens, random_weights, write_checkpoint
from tests.native import KERNELS

MOE_LAYERS = (1, 3)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one row."""
    monkeypatch.setitem(REGISTRY, NAME, "tests.layered_family")


@pytest.fixture
def path(tmp_path: Path, registered: None) -> Path:
    return write_checkpoint(tmp_path / "layered", LAYERED)


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_model_computes_what_the_family_says(path: Path, kernels: KernelChoice) -> None:
    weights = random_weights(LAYERED)
    ids_T = torch.randint(0, LAYERED.vocab_size, (30,), generator=torch.Generator().manual_seed(2))
    model = AssembledModel.from_checkpoint(path, kernels=choose_kernels(kernels, "cpu"))
    logits_BSV, _ = model.forward(ids_T[None])
    expected_SV = plain_logits(LAYERED, weights.shared, weights.experts, ids_T)
    largest = float(expected_SV.abs().max())
    torch.testing.assert_close(logits_BSV[0], expected_SV, rtol=1e-4, atol=1e-4 * largest)


def test_files_are_those_of_layers_with_experts(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    assert checkpoint.config == LAYERED
    found = {file.parent.name for file in path.glob("experts/*/*")}
    assert found == {f"layer_{layer:04d}" for layer in MOE_LAYERS}
    checkpoint.verify()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_engine_says_what_the_model_says(
    path: Path, kernels: KernelChoice, num_workers: int, micro_batches: int
) -> None:
    checkpoint = Checkpoint.open(path)
    config = EngineConfig(
        block_size=4, max_num_seqs=6, max_step_tokens=24, kernels=kernels, micro_batches=micro_batches
    )
    oracle = AssembledModel.from_checkpoint(path)
    selections = [None, ExpertSelection((0, 3), 1), None, ExpertSelection((1, 2, 4))]
    requests = [
        Request(
            f"r{index}",
            tuple(range(1 + index, 9 + 3 * index)),
            SamplingParams(temperature=0),
            StopRules(8),
            returns=Returns(routed_experts=True),
            experts=selection,
        )
        for index, selection in enumerate(selections)
    ]
    workers = WorkersConfig(num_workers=num_workers, transport="in-process")
    with open_experts(checkpoint, config, workers) as experts:
        engine = build_engine(checkpoint, config, experts)
        for request in requests:
            engine.submit(request)
        results = drain(engine)
    for request in requests:
        result = results[request.request_id]
        assert result.token_ids == expected_tokens(oracle, request)
        traces = [trace for output in result.outputs for trace in output.routed_experts]
        assert {trace.ids_TLK.shape[1] for trace in traces} == {len(MOE_LAYERS)}


def test_experts_are_exchanged_where_there_are_some(path: Path, tmp_path: Path) -> None:
    changing = Changing.open(path)
    other = write_checkpoint(tmp_path / "other", LAYERED, seed=7)
    file = str(other / "experts" / "layer_0003" / "expert_0000.safetensors")
    with pytest.raises(ExchangeError, match="layer 2 is dense: it has no experts"):
        changing.exchange.replace(2, 0, file)
    changed = changing.exchange.replace(3, 0, file)
    assert (changed.expert.module.layer, changed.expert.module.version) == (3, 1)
    assert changing.engine.versions is not None
    assert changing.engine.versions.newest.experts == ((), tuple(range(5)), (), tuple(range(5)))
