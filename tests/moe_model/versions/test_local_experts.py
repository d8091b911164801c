"""Experts in this process that are exchanged: at every moment equal to the same modules alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_model.checkpoint.module_file import check_module
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError, HaltedError, NoWorkersError
from moe_model.families import family_of
from moe_model.halt import Halt
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.layers.router import Routing
from moe_model.loading import load_local_experts
from moe_model.versions.expert_versions import Catalog, ExpertModule
from moe_model.versions.local_experts import LocalExperts
from tests.models import TINY, write_checkpoint
from tests.native import KERNELS


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    choice: KernelChoice = request.param
    return choose_kernels(choice, "cpu", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("living") / "source"))


def opened(checkpoint: Checkpoint, kernels: Kernels) -> LocalExperts:
    return load_local_experts(checkpoint, torch.float32, "cpu", kernels)


def test_a_load_that_is_told_to_stop_reads_no_further(
    source: Checkpoint, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    halt, read = Halt(), list[tuple[int, int]]()
    read_expert = type(source).read_expert

    def reading(self: Checkpoint, layer: int, expert: int, *rest: Any) -> Any:
        read.append((layer, expert))
        halt.set()
        return read_expert(self, layer, expert, *rest)

    monkeypatch.setattr(type(source), "read_expert", reading)
    with pytest.raises(HaltedError):
        load_local_experts(source, torch.float32, "cpu", kernels, halt=halt)
    assert read == [(0, 0)]


def routing(num_columns: int) -> Routing:
    """Of as many tokens as columns; each goes to its own and the next, the last one to its own alone."""
    ids_TK = torch.tensor([[n, n + 1] for n in range(num_columns)])
    return Routing(torch.full((num_columns, 2), 0.5), ids_TK, torch.zeros(num_columns, num_columns))


def version_of(checkpoint: Checkpoint, layer: int, slot: int, expert: int) -> ExpertModule:
    """An expert of layer 0 for some expert of another."""
    path = str(checkpoint.path / "experts" / "layer_0000" / "expert_0003.safetensors")
    shapes = family_of(checkpoint.config).expert_shapes(checkpoint.config)
    return ExpertModule(layer, slot, expert, 1, check_module(path, shapes, checkpoint.dtype))


def test_it_begins_as_the_checkpoint(source: Checkpoint, kernels: Kernels) -> None:
    living, family = opened(source, kernels), family_of(source.config)
    x_TD = torch.randn(4, TINY.d_model)
    for layer in range(TINY.n_layers):
        bank = kernels.bank(
            {
                (layer, expert): family.build_expert(
                    source.config, source.read_expert(layer, expert, torch.float32, "cpu"), kernels
                )
                for expert in range(TINY.n_experts)
            }
        )
        expected = bank.run_tokens(layer, x_TD, routing(4))
        assert torch.equal(living.forward(layer, x_TD, routing(4)), expected)
        assert torch.equal(living.finish(living.begin(layer, x_TD, routing(4))), expected)


def test_there_are_no_workers(source: Checkpoint, kernels: Kernels) -> None:
    living = opened(source, kernels)
    assert living.num_replicas == 0
    assert (living.topology(), living.holders((0, 0)), living.missing_experts()) == ((), (), ())
    with pytest.raises(NoWorkersError, match="no workers to scale"):
        living.scale(2, 1.0)
    assert not living.wait_for_lost(60.0), "no expert is lost, so a step that fails is not tried again"


def test_columns_are_what_was_switched_to(source: Checkpoint, kernels: Kernels) -> None:
    living = opened(source, kernels)
    x_TD = torch.randn(5, TINY.d_model)
    others = living.forward(0, x_TD[:4], routing(4))
    module = version_of(source, 1, 4, 2)
    living.prepare(module)
    old = Catalog.of_checkpoint(TINY).columns
    both = (*old[1][:3], module, old[1][3])
    living.switch(Catalog((old[0], both)))
    alone = opened(source, kernels)
    for column, slot in ((0, 0), (1, 1), (2, 2), (4, 3)):
        assert torch.equal(living.forward(1, x_TD, only(column, 5)), alone.forward(1, x_TD, only(slot, 4)))
    assert torch.equal(living.forward(1, x_TD, only(3, 5)), alone.forward(0, x_TD, only(3, 4)))
    assert torch.equal(living.forward(0, x_TD[:4], routing(4)), others), "the other layer is as it was"
    living.switch(Catalog((old[0], both[::-1])))
    assert torch.equal(living.forward(1, x_TD, only(4, 5)), alone.forward(1, x_TD, only(0, 4)))


def only(column: int, num_columns: int) -> Routing:
    """Five tokens to one column."""
    return Routing(torch.ones(5, 1), torch.full((5, 1), column), torch.zeros(5, num_columns))


def test_what_is_released_is_gone(source: Checkpoint, kernels: Kernels) -> None:
    living, module = opened(source, kernels), version_of(source, 1, 4, 2)
    columns = Catalog.of_checkpoint(TINY).columns
    x_TD = torch.ones(4, TINY.d_model)
    before = living.forward(1, x_TD, routing(4))
    living.prepare(module)
    living.release([(1, 4), (9, 9)])
    assert (1, 4) not in living.keys
    with pytest.raises(KeyError):
        living.switch(Catalog((columns[0], (*columns[1][:3], module))))
    assert torch.equal(living.forward(1, x_TD, routing(4)), before), "nothing has changed"
    living.switch(Catalog((columns[0], columns[1][1:])))
    assert (1, 0) not in living.keys
    with pytest.raises(KeyError):
        living.switch(Catalog(columns))


def test_slices_are_exchanged_as_the_whole_is(source: Checkpoint, kernels: Kernels) -> None:
    sliced = load_local_experts(source, torch.float32, "cpu", kernels, num_slices=3)
    whole, module = opened(source, kernels), version_of(source, 1, 4, 2)
    columns, x_TD = Catalog.of_checkpoint(TINY).columns, torch.randn(4, TINY.d_model)
    both = Catalog((columns[0], (*columns[1][:2], module, columns[1][3])))
    for experts in (sliced, whole):
        experts.prepare(module)
        experts.switch(both)
        experts.release([(1, 2)])
    for layer in range(TINY.n_layers):
        expected = whole.forward(layer, x_TD, routing(4))
        torch.testing.assert_close(sliced.forward(layer, x_TD, routing(4)), expected, rtol=1e-4, atol=1e-5)
    assert sliced.keys == {(layer, 3 * slot + s) for layer, slot in whole.keys for s in range(3)}
    sliced.prepare(version_of(source, 1, 5, 2))
    sliced.release([(1, 5)])
    assert len(sliced.keys) == 3 * len(whole.keys)


def test_a_file_that_is_not_what_was_checked_is_not_loaded(source: Checkpoint, kernels: Kernels) -> None:
    living, module = opened(source, kernels), version_of(source, 1, 4, 2)
    assert module.file is not None
    wrong = replace(module, file=replace(module.file, sha256="0" * 64))
    with pytest.raises(CheckpointError, match="has changed"):
        living.prepare(wrong)
    assert (1, 4) not in living.keys


def test_files_are_read_where_they_are(source: Checkpoint, tmp_path: Path) -> None:
    shapes = family_of(source.config).expert_shapes(source.config)
    with pytest.raises(CheckpointError, match="is not an absolute path"):
        check_module("module", shapes, source.dtype)
    with pytest.raises(CheckpointError, match="No such file"):
        check_module(str(tmp_path / "module"), shapes, source.dtype)
