"""Parts of a run: faults at their times, routing that is counted, models that are made, arguments."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from expertmesh.v1 import generation_pb2 as pb
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import ConfigError
from scaling.cell import Cell, Fault, Load, Skew
from scaling.shape import shape_of
from scaling.sweep.expert_loads import count
from scaling.sweep.fault_thread import FaultThread
from scaling.sweep.models import checkpoint_of
from scaling.sweep.server_arguments import server_arguments

EXAMPLES = Path(__file__).parents[3] / "scaling" / "examples"
_TIMEOUT = 20.0


class Server:
    """A Running whose faults are only noted."""

    grpc_address = http_address = control_address = ""

    def __init__(self, failure: str | None = None) -> None:
        self._failure = failure
        self.is_broken, self.is_healed = threading.Event(), threading.Event()

    def pids(self) -> dict[str, list[int]]:
        return {}

    def inject(self, fault: Fault) -> AbstractContextManager[None]:
        return self._injected()

    @contextmanager
    def _injected(self) -> Iterator[None]:
        if self._failure is not None:
            raise RuntimeError(self._failure)
        self.is_broken.set()
        yield
        self.is_healed.set()


def test_a_fault_is_over_after_its_seconds() -> None:
    server = Server()
    with FaultThread(server, Fault("pause", at_s=0.01, seconds=0.01)) as fault:
        fault.begin()
        assert server.is_broken.wait(_TIMEOUT)
        assert server.is_healed.wait(_TIMEOUT)


def test_a_fault_is_healed_when_the_load_is_over() -> None:
    server = Server()
    with FaultThread(server, Fault("pause", at_s=0.0, seconds=1e6)) as fault:
        fault.begin()
        assert server.is_broken.wait(_TIMEOUT)
        assert not server.is_healed.is_set()
    assert server.is_healed.is_set()


def test_a_load_that_is_over_first() -> None:
    server = Server()
    with (
        pytest.raises(RuntimeError, match="the load was over before 1000 s"),
        FaultThread(server, Fault("kill", at_s=1000.0)) as fault,
    ):
        fault.begin()
    assert not server.is_broken.is_set()


def test_a_fault_that_cannot_be_done() -> None:
    fault = FaultThread(Server("no such worker"), Fault("kill", at_s=0.0))
    fault.__enter__().begin()
    fault._thread.join(_TIMEOUT)
    with pytest.raises(RuntimeError, match="no such worker"):
        fault.__exit__(None, None, None)


def test_the_load_s_own_error_comes_first() -> None:
    with pytest.raises(ValueError, match="mine"), FaultThread(Server(), Fault("kill", at_s=1000.0)):
        raise ValueError("mine")


def routed(ids: "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]") -> pb.RoutedExperts:
    return pb.RoutedExperts(
        data=ids.tobytes(),
        element_type=pb.RoutedExperts.ELEMENT_TYPE_UINT8,
        num_tokens=ids.shape[0],
        num_layers=ids.shape[1],
        experts_per_token=ids.shape[2],
    )


def test_routing_is_counted_by_layer_and_expert() -> None:
    found = np.zeros((2, 4), np.int64)
    count(routed(np.array([[[0, 1], [2, 3]], [[0, 3], [2, 1]]], np.uint8)), found)
    assert found.tolist() == [[2, 1, 0, 1], [0, 1, 2, 1]]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3)])
def test_routing_of_another_model(shape: tuple[int, int]) -> None:
    with pytest.raises(RuntimeError, match="another model"):
        count(routed(np.full((1, 2, 2), 3, np.uint8)), np.zeros(shape, np.int64))


def test_a_model_is_made_once(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text("d_model: 16\nn_heads: 2\nn_layers: 2\nd_ff: 16\nvocab_size: 64\nmax_seq_len: 32\n")
    cell = Cell(model="tiny.yaml", load=Load(concurrency=1))
    made = checkpoint_of(cell, tmp_path, tmp_path / "cache")
    assert Checkpoint.open(made).config.d_model == 16
    written = (made / "manifest.json").stat().st_mtime_ns
    assert checkpoint_of(cell, tmp_path, tmp_path / "cache") == made
    assert (made / "manifest.json").stat().st_mtime_ns == written
    config.write_text(config.read_text().replace("d_ff: 16", "d_ff: 32"))
    assert checkpoint_of(cell, tmp_path, tmp_path / "cache") != made
    (tmp_path / "weights").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="a checkpoint is given by its folder"):
        checkpoint_of(Cell(model="weights", load=Load(concurrency=1)), tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="layers"):
        checkpoint_of(Cell(model=".", layers=1, load=Load(concurrency=1)), tmp_path, tmp_path)


@pytest.mark.parametrize(("name", "low", "high"), [("olmoe-small", 30, 60), ("qwen3-moe-small", 30, 60)])
def test_the_examples_models_are_small(name: str, low: int, high: int) -> None:
    shape = shape_of(EXAMPLES / f"{name}.json")
    assert low < shape.total_params / 1e6 < high
    assert (shape.n_layers, shape.n_experts, shape.top_k, shape.vocab_size) == (4, 16, 4, 8192)


def test_modularforge_has_the_default_sizes() -> None:
    assert round(shape_of(EXAMPLES / "modularforge.json").total_params / 1e6, 1) == 54.6


def test_arguments_of_a_server() -> None:
    cell = Cell(
        model="m",
        workers=2,
        replicas=2,
        combine="sum",
        skew=Skew(1.2, "masked"),
        load=Load(concurrency=1),
        serve={"max-batch": 8, "prefix-caching": False, "reflection": True},
    )
    found = server_arguments(cell, Path(), 5)
    assert found == [
        *("--dtype=bfloat16", "--routed-experts", "--replicas=2", "--transport=stream"),
        *("--wire-dtype=float32", "--combine=sum", "--force-routing=masked-zipf:1.2:5"),
        *("--max-batch=8", "--no-prefix-caching", "--reflection"),
    ]
    assert server_arguments(Cell(model="m", load=Load(concurrency=1)), Path(), 5) == found[:2]
