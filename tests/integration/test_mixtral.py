"""Mixtral from folders that transformers wrote, against transformers itself, in float32."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.engine.messages.request import Request, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.remote_experts import RemoteExperts
from moe_model import AssembledModel
from moe_model.checkpoint.importer import import_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.sampling.params import SamplingParams
from moe_model.versions.running_experts import RunningExperts
from tests.integration.ray_experts import running
from tests.models import drain
from tests.native import KERNELS
from tests.transformers_mixtral import SIZES, greedy, logits_of, make_model, write_folder

CONFIG = EngineConfig(block_size=4, max_num_seqs=6, max_step_tokens=24)
NUM_TOKENS = 64
PROMPTS = ([1, 5, 9], [1, *range(20, 60)], [7])
# Of the largest logit: what transformers' own ways of computing differ by is a third of it.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("mixtral")
    import_checkpoint(write_folder(model, folder / "source"), folder / "ours")
    return Checkpoint.open(folder / "ours")


@pytest.fixture(scope="module")
def expected(model: Any) -> dict[str, list[int]]:
    return {f"r{index}": greedy(model, prompt, NUM_TOKENS) for index, prompt in enumerate(PROMPTS)}


def generate(checkpoint: Checkpoint, config: EngineConfig, experts: RunningExperts) -> dict[str, list[int]]:
    """All prompts in one batch."""
    engine = build_engine(checkpoint, config, experts)
    for index, prompt in enumerate(PROMPTS):
        params, stop = SamplingParams(temperature=0), StopRules(NUM_TOKENS)
        engine.submit(Request(f"r{index}", tuple(prompt), params, stop))
    return {request_id: result.token_ids for request_id, result in drain(engine).items()}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_any_number_of_workers_says_what_transformers_says(
    checkpoint: Checkpoint, expected: dict[str, list[int]], num_workers: int, kernels: KernelChoice
) -> None:
    config = replace(CONFIG, kernels=kernels)
    workers = WorkersConfig(num_workers=num_workers, transport="in-process")
    with open_experts(checkpoint, config, workers) as experts:
        assert generate(checkpoint, config, experts) == expected


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster.start_local()
    yield cluster
    cluster.close()


@pytest.mark.timeout(300)
def test_ray_workers_say_what_transformers_says(
    cluster: RayCluster, checkpoint: Checkpoint, expected: dict[str, list[int]]
) -> None:
    with running(checkpoint, 2, namespace="mixtral") as ray:
        experts = RemoteExperts(ray.pool, ray.supervisor, lambda: None)
        assert generate(checkpoint, CONFIG, experts) == expected


def check_logits(model: Any, source: Path, dest: Path, kernels: KernelChoice, vocab_size: int) -> None:
    import_checkpoint(source, dest)
    ids_BS = torch.randint(3, vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    ours = AssembledModel.from_checkpoint(dest, kernels=choose_kernels(kernels, "cpu"))
    logits_BSV, _ = ours.forward(ids_BS)
    expected_BSV = logits_of(model, ids_BS)
    error = float((logits_BSV - expected_BSV).abs().max() / expected_BSV.abs().max())
    assert error < TOLERANCE


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("changes", "old_spelling"),
    [
        ({}, False),
        ({}, True),
        ({"tie_word_embeddings": True}, False),
        ({"head_dim": None, "hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 3}, True),
        ({"num_key_value_heads": 1, "num_experts_per_tok": 1, "num_hidden_layers": 1}, False),
        ({"num_local_experts": 2, "rms_norm_eps": 1e-2, "rope_theta": 100.0}, True),
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(
    changes: dict[str, Any], old_spelling: bool, kernels: KernelChoice, tmp_path: Path
) -> None:
    model = make_model(1, **changes)
    source = write_folder(model, tmp_path / "source", old_spelling=old_spelling)
    check_logits(model, source, tmp_path / "ours", kernels, SIZES["vocab_size"])


def test_one_file_is_read_as_many_are(model: Any, tmp_path: Path) -> None:
    source = write_folder(model, tmp_path / "source", max_shard_size="1GB")
    assert not (source / "model.safetensors.index.json").exists()
    check_logits(model, source, tmp_path / "ours", "torch", SIZES["vocab_size"])
