"""The shared part of a model, which is read while something else happens."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.server import shared_part
from coordinator.server.shared_part import loading_shared
from moe_model.checkpoint.reader import Checkpoint, OnBytes
from moe_model.errors import CheckpointError, HaltedError
from moe_model.halt import Halt
from moe_model.layers.dense import SharedModel
from moe_model.loading import load_shared
from tests.models import write_checkpoint

PATIENCE = 10.0
CONFIG = EngineConfig()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert shared_threads() == []


def shared_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("shared_")]


class Slow:
    """In the place of `load_shared`: tells of a tenth of the bytes, waits until it may go on, then loads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_begun, self.goes_on = threading.Event(), threading.Event()
        monkeypatch.setattr(shared_part, "load_shared", self.load)

    def load(self, checkpoint: Checkpoint, dtype: torch.dtype, *others: Any) -> SharedModel:
        on_bytes: OnBytes = others[2]
        on_bytes(1, 10)
        self.has_begun.set()
        assert self.goes_on.wait(PATIENCE)
        on_bytes(10, 10)
        return load_shared(checkpoint, dtype, *others)


def test_it_is_read_while_the_block_does_something_else(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    told: list[tuple[int, int]] = []
    with loading_shared(checkpoint, CONFIG, Halt()) as part:
        assert slow.has_begun.wait(PATIENCE)
        assert told == []
        slow.goes_on.set()
        model = part.result(lambda *bytes_: told.append(bytes_))
        assert len(model.blocks) == checkpoint.config.n_layers
        assert part.result() is model
        for thread in shared_threads():
            thread.join(PATIENCE)
        # It would stay as long as the server does.
        assert shared_threads() == []
    assert told[-1][0] == told[-1][1] > 0


def test_what_was_read_before_is_told_at_once(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    told: list[tuple[int, int]] = []

    def tell(*bytes_: int) -> None:
        told.append((bytes_[0], bytes_[1]))
        slow.goes_on.set()

    with loading_shared(checkpoint, CONFIG, Halt()) as part:
        assert slow.has_begun.wait(PATIENCE)
        part.result(tell)
    assert told[:2] == [(1, 10), (10, 10)]


def test_a_halt_ends_the_wait_and_the_reading(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, halt = Slow(monkeypatch), Halt()
    with loading_shared(checkpoint, CONFIG, halt) as part:
        assert slow.has_begun.wait(PATIENCE)
        halt.set()
        with pytest.raises(HaltedError):
            part.result()
        # It is at a tensor; after that one it ends, and reads no other.
        slow.goes_on.set()
    with pytest.raises(HaltedError):
        part.result()


def test_a_block_that_fails_does_not_wait_for_all_of_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tensor is not read when what is read beside it has failed."""
    loaded: list[str] = []
    slow = Slow(monkeypatch)
    monkeypatch.setattr("tests.coordinator.server.test_shared_part.load_shared", lambda *_: loaded.append(""))

    def fail() -> None:
        with loading_shared(checkpoint, CONFIG, Halt()) as part:
            assert slow.has_begun.wait(PATIENCE)
            part.stopped.then(slow.goes_on.set)
            raise CheckpointError("an expert")

    with pytest.raises(CheckpointError, match="an expert"):
        fail()
    assert loaded == []


def test_what_is_wrong_with_it_is_said_by_the_result(checkpoint: Checkpoint) -> None:
    (checkpoint.path / "shared.safetensors").unlink()
    with (
        loading_shared(checkpoint, CONFIG, Halt()) as part,
        pytest.raises(CheckpointError, match=r"shared\.safetensors"),
    ):
        part.result()
