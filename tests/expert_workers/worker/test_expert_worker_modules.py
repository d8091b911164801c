"""What a worker holds changes while it computes."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from expert_workers.wire import ExpertCall, ReplyForm
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.errors import CheckpointError, FencedError, ReplyError, WorkerStartError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.dispatch import Expert, ExpertKey
from moe_model.versions.expert_versions import ExpertFile, ExpertModule, checkpoint_modules
from tests.expert_workers.fakes import (
    TORCH,
    FakeSource,
    dealt,
    make_config,
    make_expert,
    make_spec,
    make_worker,
)
from tests.native import KERNELS

CONFIG = make_config()
PLACEMENT = dealt(2, 5, 2)
FAR = ExpertModule(1, 2**31, 3, 7, ExpertFile("/far", 1, ""))


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return choose_kernels(request.param, "cpu")


def fresh(kernels: Kernels) -> tuple[ExpertWorker, FakeSource]:
    source = FakeSource(CONFIG, torch.float32, kernels)
    return ExpertWorker(make_spec(4, kernels), source), source


def call_of(key: ExpertKey, num_rows: int = 2, epoch: int = 0) -> ExpertCall:
    rows = np.linspace(-1, 1, num_rows * CONFIG.d_model, dtype=np.float32).reshape(num_rows, -1)
    return ExpertCall(1, epoch, key[0], ((key[1], num_rows),), None, None, rows, "float32", ReplyForm.PAIRS)


def expected(key: ExpertKey, kernels: Kernels) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    x_RD = torch.from_numpy(call_of(key).x_RD)
    with torch.inference_mode():
        y_RD: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = make_expert(
            CONFIG, key, torch.float32, kernels
        )(x_RD).numpy()
    return y_RD


def answers(worker: ExpertWorker, keys: Sequence[ExpertKey], kernels: Kernels) -> bool:
    return all(np.array_equal(worker.compute(call_of(key)).y_ND, expected(key, kernels)) for key in keys)


def test_an_empty_worker_says_that_it_holds_nothing(kernels: Kernels) -> None:
    worker, _ = fresh(kernels)
    with pytest.raises(ReplyError, match="worker 4: does not hold module 1 of layer 0"):
        worker.compute(call_of((0, 1)))
    with pytest.raises(ReplyError, match="worker 4: does not hold anything"):
        worker.compute(call_of((0, 1))._replace(segments=()))
    worker.unload([(0, 1)])
    assert worker.describe().keys == ()


def test_it_computes_what_it_holds_whatever_came_before(kernels: Kernels) -> None:
    worker, _ = fresh(kernels)
    worker.load([*checkpoint_modules([(0, 3), (0, 1)]), FAR])
    assert answers(worker, [(0, 1), (0, 3), FAR.key], kernels)
    worker.load(checkpoint_modules([(0, 2), (1, 0)]))
    assert answers(worker, [(0, 1), (0, 2), (0, 3), (1, 0), FAR.key], kernels)
    worker.unload([(0, 1), FAR.key, (1, 4)])
    assert answers(worker, [(0, 2), (0, 3), (1, 0)], kernels)
    info = worker.describe()
    assert (info.keys, info.num_bytes) == (((0, 2), (0, 3), (1, 0)), 300)
    with pytest.raises(ReplyError, match="does not hold module 1 of layer 0"):
        worker.compute(call_of((0, 1)))
    worker.unload(info.keys)
    assert worker.describe().keys == ()
    worker.load([FAR])
    assert answers(worker, [FAR.key], kernels)


def test_the_tag_says_which_modules_answered(kernels: Kernels) -> None:
    worker, _ = fresh(kernels)
    worker.load([FAR, ExpertModule(1, 9, 1, 1, FAR.file)])
    call = call_of(FAR.key, 3)._replace(segments=((9, 1), (2**31, 2)))
    reply = worker.compute(call)
    assert (reply.layer, reply.tag) == (1, (10 + 2 * (2**31 + 1)) % 2**32)
    assert reply.tag == call.tag


def test_what_it_holds_is_not_read_again() -> None:
    worker, source = fresh(TORCH)
    worker.load(checkpoint_modules([(0, 1)]))
    worker.load(checkpoint_modules([(0, 0), (0, 1), (0, 0)]))
    assert source.reads == [(0, 1), (0, 0)]


def test_another_module_in_the_same_slot_is_refused() -> None:
    worker, _ = fresh(TORCH)
    worker.load([FAR])
    other = ExpertModule(1, 2**31, 3, 7, ExpertFile("/else", 1, ""))
    with pytest.raises(WorkerStartError, match=f"worker 4: holds another module in slot {2**31} of layer 1"):
        worker.load([other])
    with pytest.raises(WorkerStartError, match="in slot 8 of layer 0"):
        worker.load([ExpertModule(0, 8, 1, 1, FAR.file), ExpertModule(0, 8, 1, 2, FAR.file)])
    worker.unload([FAR.key])
    worker.load([other])


def test_a_load_that_fails_changes_nothing() -> None:
    worker, source = fresh(TORCH)
    worker.load(checkpoint_modules([(0, 1)]))
    source.broken.add((1, 3))
    with pytest.raises(WorkerStartError, match="worker 4: file 3: is broken"):
        worker.load(checkpoint_modules([(0, 0), (1, 3)]))
    assert worker.describe().keys == ((0, 1),)
    source.broken.clear()
    worker.load(checkpoint_modules([(0, 0), (1, 3)]))
    assert worker.describe().keys == ((0, 0), (0, 1), (1, 3))


class Held(FakeSource):
    """Reads a module when it is let go."""

    def __init__(self) -> None:
        super().__init__(CONFIG, torch.float32, TORCH)
        self.reading, self.go = threading.Event(), threading.Event()

    def read(self, module: ExpertModule) -> tuple[Expert, int]:
        self.reading.set()
        if not self.go.wait(10):
            raise CheckpointError("nobody let it go")
        return super().read(module)


def test_rows_are_computed_and_modules_forgotten_while_others_are_read() -> None:
    source = Held()
    worker = ExpertWorker(WorkerSpec(0, "", kernels="torch"), source)
    source.go.set()
    worker.load(checkpoint_modules([(0, 0), (0, 1)]))
    source.go.clear()
    source.reading.clear()
    thread = threading.Thread(target=worker.load, args=(checkpoint_modules([(0, 2)]),))
    thread.start()
    assert source.reading.wait(10)
    assert answers(worker, [(0, 0), (0, 1)], TORCH)
    worker.unload([(0, 1)])
    assert worker.describe().keys == ((0, 0),)
    source.go.set()
    thread.join(10)
    assert worker.describe().keys == ((0, 0), (0, 2))


def test_the_canary_says_the_same_until_a_weight_changes(kernels: Kernels) -> None:
    worker, _ = fresh(kernels)
    keys = [(0, 1), FAR.key]
    worker.load([*checkpoint_modules([(0, 1)]), FAR])
    first = worker.canary(keys)
    assert {key: (y_D.shape, y_D.dtype) for key, y_D in first.items()} == dict.fromkeys(
        keys, ((CONFIG.d_model,), np.dtype(np.float32))
    )
    assert not np.array_equal(first[0, 1], first[FAR.key])
    worker.load(checkpoint_modules([(0, 0), (1, 0)]))
    worker.compute(call_of((0, 0)))
    again, elsewhere = worker.canary(keys), fresh(kernels)[0]
    elsewhere.load([FAR])
    assert all(np.array_equal(first[key], again[key]) for key in keys)
    assert np.array_equal(elsewhere.canary([FAR.key])[FAR.key], first[FAR.key])
    assert worker.describe().routed_rows == 2
    with pytest.raises(ReplyError, match="worker 4: does not hold module 7 of layer 0"):
        worker.canary([(0, 7)])


def test_the_canary_finds_a_flipped_bit() -> None:
    worker, _ = fresh(TORCH)
    worker.load([FAR])
    before = worker.canary([FAR.key])[FAR.key]
    held = worker._held
    assert held is not None
    weight = held.bank._layers[1][2**31].up.weight_OI  # type: ignore[attr-defined]
    weight.view(torch.int32)[3, 5] ^= 1 << 20
    assert not np.array_equal(worker.canary([FAR.key])[FAR.key], before)


def test_a_coordinator_that_has_been_replaced_is_refused(kernels: Kernels) -> None:
    worker = make_worker(CONFIG, PLACEMENT, 0, kernels=kernels)
    worker.compute(call_of((0, 0)))
    worker.claim("a coordinator", 5)
    worker.claim("a coordinator", 5)
    over = "worker 0: epoch 4 is over: a coordinator of epoch 5 has taken over"
    for refused in (
        lambda: worker.claim("a coordinator", 4),
        lambda: worker.compute(call_of((0, 0), epoch=4)),
    ):
        with pytest.raises(FencedError, match=over):
            refused()
    with pytest.raises(ReplyError, match=r"worker 0: epoch 6 has not been claimed: .* of epoch 5"):
        worker.compute(call_of((0, 0), epoch=6))
    assert worker.compute(call_of((0, 0), epoch=5)).epoch == 5
    assert worker.describe().epoch == 5
