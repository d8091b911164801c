"""Workers over checkpoints on disk."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expert_workers.processes import Process, is_running
from expert_workers.wire import ExpertCall, ReplyForm
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.manifest import expert_file
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import WorkerStartError
from moe_model.names import ROUNDED_FORMS
from moe_model.versions.expert_versions import ExpertFile, ExpertModule, checkpoint_modules
from tests.expert_workers.fakes import dealt, make_config

CONFIG = make_config()
PLACEMENT = dealt(2, 5, 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker") / "checkpoint"
    initialise_checkpoint(path, CONFIG)
    return path


def a_file(path: Path) -> ExpertFile:
    data = path.read_bytes()
    return ExpertFile(str(path), len(data), hashlib.sha256(data).hexdigest())


def rows_of(worker: ExpertWorker, slot: int) -> np.ndarray[Any, Any]:
    x_RD = np.linspace(-1, 1, 3 * CONFIG.d_model, dtype=np.float32).reshape(3, CONFIG.d_model)
    call = ExpertCall(1, 0, 0, ((slot, 3),), None, None, x_RD, "float32", ReplyForm.PAIRS)
    return worker.compute(call).y_ND


def test_nothing_is_read_before_it_is_wanted(tmp_path: Path) -> None:
    info = ExpertWorker(WorkerSpec(3, str(tmp_path / "nowhere"), torch.bfloat16)).describe()
    assert (info.rank, info.keys, info.num_bytes, info.fingerprint) == (3, (), 0, "")
    assert (info.dtype, info.device, info.load_seconds, info.epoch) == ("bfloat16", "cpu", 0.0, 0)
    assert (info.node_id, info.host, info.pid) == ("", "", os.getpid())
    assert is_running(Process(info.pid, info.start_ticks))
    assert info.free_bytes > 0


def test_it_loads_just_what_it_is_told_and_says_so(path: Path) -> None:
    checkpoint, keys = Checkpoint.open(path), PLACEMENT.experts_of(1)
    worker = ExpertWorker(WorkerSpec(1, str(path), fingerprint=checkpoint.fingerprint))
    worker.load(checkpoint_modules(reversed(keys)))
    info = worker.describe()
    assert (info.keys, info.fingerprint) == (keys, checkpoint.fingerprint)
    assert info.num_bytes == len(keys) * num_expert_bytes(CONFIG)
    assert info.rss_bytes > 1 << 20
    assert info.load_seconds > 0


def test_a_version_from_a_file_of_its_own_computes_what_the_same_weights_compute(path: Path) -> None:
    worker = ExpertWorker(WorkerSpec(1, str(path)))
    file = a_file(path / expert_file(1, 4))
    worker.load([ExpertModule(0, 70_000, 2, 1, file), *checkpoint_modules([(0, 2)])])
    assert worker.describe().keys == ((0, 2), (0, 70_000))
    other = ExpertWorker(WorkerSpec(1, str(path)))
    other.load([ExpertModule(0, 4, 4, 0, file)])
    assert np.array_equal(rows_of(worker, 70_000), rows_of(other, 4))
    assert not np.array_equal(rows_of(worker, 70_000), rows_of(worker, 2))


def test_a_broken_file_is_named_and_nothing_of_the_rest_is_held(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    initialise_checkpoint(path, CONFIG)
    file = path / expert_file(1, 0)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    worker = ExpertWorker(WorkerSpec(1, str(path)))
    with pytest.raises(WorkerStartError, match=r"^worker 1: [^\n]*layer_0001/expert_0000.safetensors[^\n]*$"):
        worker.load(checkpoint_modules([(0, 1), (1, 0)]))
    assert worker.describe().keys == ()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ExpertModule(0, 9, 9), r"^worker 1: [^\n]*the model has no experts/layer_0000/expert_0009"),
        (ExpertModule(2, 5, 1, 1, ExpertFile("/x", 1, "")), "^worker 1: /x: the model has no layer 2"),
        (ExpertModule(0, 5, 1, 1, ExpertFile("/x/y", 1, "")), "^worker 1: /x/y: No such file"),
    ],
)
def test_a_module_that_the_model_cannot_have_is_named(path: Path, module: ExpertModule, message: str) -> None:
    with pytest.raises(WorkerStartError, match=message):
        ExpertWorker(WorkerSpec(1, str(path))).load([module])


def test_no_memory_is_a_failure_that_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(Checkpoint.open(path)), "read_expert", fail)
    with pytest.raises(WorkerStartError, match=r"expert_0001.safetensors: cannot be put into memory: Memory"):
        ExpertWorker(WorkerSpec(1, str(path))).load(checkpoint_modules([(0, 1)]))


def test_a_missing_checkpoint_is_named_and_may_come_later(tmp_path: Path) -> None:
    worker = ExpertWorker(WorkerSpec(3, str(tmp_path / "later")))
    with pytest.raises(WorkerStartError, match=r"^worker 3: .*later"):
        worker.load(())
    initialise_checkpoint(tmp_path / "later", CONFIG)
    worker.load(())
    assert worker.describe().fingerprint


def test_another_checkpoint_at_the_same_path_is_refused(path: Path) -> None:
    with pytest.raises(WorkerStartError, match="not the checkpoint that the coordinator has opened"):
        ExpertWorker(WorkerSpec(0, str(path), fingerprint="other")).load(())


def test_kernels_that_cannot_be_had_are_a_failure_to_load(path: Path) -> None:
    worker = ExpertWorker(WorkerSpec(0, str(path), device="meta", kernels="native"))
    with pytest.raises(WorkerStartError, match=r"^worker 0: kernels: native ones are for CPUs"):
        worker.load(())


def num_expert_bytes(config: ModelConfig) -> int:
    d, f = config.d_model, config.d_ff
    return 4 * (2 * d + f * d + f + d * f + d)


def test_rounded_experts_are_another_precision() -> None:
    precisions = [
        WorkerSpec(0, "", dtype, form=form).precision
        for dtype in (torch.float32, torch.bfloat16)
        for form in ROUNDED_FORMS
    ]
    assert precisions == [
        "float32",
        "float32 with int8 experts",
        "float32 with q8 experts",
        "float32 with q4 experts",
        "bfloat16",
        "bfloat16 with int8 experts",
        "bfloat16 with q8 experts",
        "bfloat16 with q4 experts",
    ]
