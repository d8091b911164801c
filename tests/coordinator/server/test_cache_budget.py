"""How long a context may be, and what the cache may take: as asked for, or a share of what is left."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.config.workers import WorkersConfig
from coordinator.engine.cache.cache_sizes import cache_bytes
from coordinator.engine.messages.request import ContextOverflow
from coordinator.server import cache_budget
from coordinator.server.build_engine import build_engine
from coordinator.server.cache_budget import cache_sizes, foreseen_sizes, max_context, share_of_memory
from coordinator.server.experts import open_experts
from coordinator.server.model_facts import read_facts
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_model import served_model
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families import family_of
from moe_model.families.mixtral.config import MixtralConfig
from tests.models import TINY, drain, make_request, write_checkpoint

LONG = ModelConfig(family="mixtral", max_seq_len=262144, own=MixtralConfig())
GIB = 1 << 30


def with_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(cache_budget, "available_bytes", lambda: num_bytes)


def test_a_cache_takes_half_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 6 * GIB)
    config = EngineConfig(device="cpu")
    taken = cache_bytes(family_of(LONG).cache_spec(LONG), cache_sizes(LONG, config), torch.float32)
    assert 0.99 * 3 * GIB < taken <= 3 * GIB


def test_a_cache_takes_no_more_than_it_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 1 << 50)
    config = EngineConfig(device="cpu", max_num_seqs=3)
    (group,) = cache_sizes(TINY, config).groups
    assert group.num_blocks == 3
    assert cache_sizes(TINY, config) == foreseen_sizes(TINY, config)


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 0)
    config = EngineConfig(device="cpu", kv_cache_bytes=GIB)
    taken = cache_bytes(family_of(LONG).cache_spec(LONG), cache_sizes(LONG, config), torch.float32)
    assert 0.99 * GIB < taken <= GIB
    with pytest.raises(ConfigError, match="0 bytes are too little for one sequence"):
        cache_sizes(LONG, EngineConfig(device="cpu"))


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GIB, 40 * GIB))
    assert share_of_memory(torch.device("cuda")) == 8 * GIB


def test_a_context_may_be_shorter_than_the_models_and_not_longer() -> None:
    assert max_context(TINY, EngineConfig()) == TINY.max_seq_len
    assert max_context(TINY, EngineConfig(max_context=5)) == 5
    message = "--max-context: 13 is more than the 12 positions of the model"
    with pytest.raises(ConfigError, match=message):
        max_context(TINY, EngineConfig(max_context=13))
    with pytest.raises(ConfigError, match="max_context: 0 is less than 1"):
        EngineConfig(max_context=0)


def test_a_shorter_context_is_what_clients_and_the_engine_know(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "tiny"))
    config = EngineConfig(max_context=8, block_size=4, max_num_seqs=3, kernels="torch", device="cpu")
    facts = read_facts(checkpoint, config)
    served = served_model(facts, ModelOptions(), ModelTexts.open(facts))
    assert (served.max_context, served.kv_capacity_tokens) == (8, 3 * 8)
    with pytest.raises(ConfigError, match="--max-context: 99 is more"):
        read_facts(checkpoint, replace(config, max_context=99))
    with open_experts(checkpoint, config, WorkersConfig(num_workers=0)) as experts:
        engine = build_engine(checkpoint, config, experts)
        engine.submit(make_request("stops", (1, 2, 3), 20, overflow=ContextOverflow.STOP))
        engine.submit(make_request("slides", (1, 2, 3), 20))
        results = drain(engine)
    assert engine.stats().kv_capacity_tokens == 3 * 8
    assert len(results["stops"].token_ids) == 5
    assert len(results["slides"].token_ids) == 20


def test_a_long_context_reserves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 contexts of 262,144 tokens would be 4 GiB even of this model; it starts in a few MiB."""
    config = replace(
        LONG, d_model=16, n_heads=2, n_kv_heads=2, n_layers=2, d_ff=8, n_experts=2, vocab_size=50, head_dim=8
    )
    with_memory(monkeypatch, 8 << 20)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "long", config))
    engine_config = EngineConfig(kernels="torch", device="cpu")
    with open_experts(checkpoint, engine_config, WorkersConfig(num_workers=0)) as experts:
        engine = build_engine(checkpoint, engine_config, experts)
    assert engine.stats().kv_capacity_tokens == (4 << 20) // (2 * 2 * 2 * 8 * 4) // 16 * 16
    engine.submit(make_request("r", tuple(range(40)), 3))
    assert len(drain(engine)["r"].token_ids) == 3
