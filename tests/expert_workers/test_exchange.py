"""Modules come and go while calls are computed, in C and in Python, in any number of threads."""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from expert_workers.transports.base import Failure, FailureReason
from expert_workers.transports.stream.connect import connect
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.transports.stream.serve_loop import HAS_LOOP, ServeLoop
from expert_workers.wire import ExpertCall, ExpertReply, ReplyForm, validate_reply
from expert_workers.worker.expert_worker import ExpertWorker
from moe_model.errors import ReplyError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import checkpoint_modules
from tests.expert_workers.fakes import FakeSource, make_config, make_expert, make_spec, make_worker, placed
from tests.expert_workers.stream_fakes import FakeMachine, soon
from tests.native import KERNELS, needs_native

CONFIG = make_config()
NUM_EXCHANGES = 200
# More than are looked at one after the other, and far apart.
SLOTS = [*range(6), *(100 * n for n in range(1, 10)), 2**32 - 1]
KEYS: list[ExpertKey] = [(layer, slot) for layer in range(2) for slot in SLOTS]
ROWS = np.random.default_rng(3).standard_normal((4, CONFIG.d_model)).astype(np.float32)


def rows_of_all(kernels: Kernels) -> dict[ExpertKey, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """What each module says to each of the rows."""
    with torch.inference_mode():
        return {
            key: make_expert(CONFIG, key, torch.float32, kernels)(torch.from_numpy(ROWS)).numpy()
            for key in KEYS
        }


def empty_worker(kernels: Kernels) -> ExpertWorker:
    return ExpertWorker(make_spec(0, kernels), FakeSource(CONFIG, torch.float32, kernels))


def make_call(call_id: int, layer: int, slots: list[int]) -> ExpertCall:
    """All rows to each module."""
    num_rows = len(ROWS)
    index = np.tile(np.arange(num_rows, dtype=np.int32), len(slots))
    segments = tuple((slot, num_rows) for slot in slots)
    return ExpertCall(call_id, 0, layer, segments, index, None, ROWS, "float32", ReplyForm.PAIRS)


def machine_of(worker: ExpertWorker) -> FakeMachine:
    machine = FakeMachine(lambda _: worker)
    machine.start(0)
    return machine


@dataclass
class Caller:
    """Sends calls over a stream of its own until it is told to end, and looks at every answer."""

    stream: StreamConnection
    expected: dict[ExpertKey, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
    seed: int
    until: threading.Event
    found: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        draw, call_id = random.Random(self.seed), 0
        while not self.until.is_set() and not self.found["wrong"]:
            call_id += 1
            layer, slots = draw.randrange(2), draw.sample(SLOTS, draw.randrange(1, 4))
            call = make_call(call_id, layer, slots)
            pending = self.stream.send(call)
            while pending.outcome is None:
                self.stream.receive()
            self.found[self._kind(call, pending.outcome)] += 1

    def _kind(self, call: ExpertCall, outcome: object) -> str:
        if isinstance(outcome, Failure):
            is_clean = outcome.reason is FailureReason.RAISED and "does not hold" in outcome.message
            return "refused" if is_clean else "wrong"
        assert isinstance(outcome, ExpertReply)
        try:
            validate_reply(0, call, outcome)
        except ReplyError:
            return "wrong"
        y_PD = np.concatenate([self.expected[call.layer, slot] for slot, _ in call.segments])
        return "right" if np.array_equal(outcome.y_ND, y_PD) else "wrong"


@pytest.mark.parametrize("name", KERNELS)
def test_every_answer_is_right_or_a_clean_refusal(name: str) -> None:
    kernels = choose_kernels(name, "cpu")  # type: ignore[arg-type]
    worker, expected, until = empty_worker(kernels), rows_of_all(kernels), threading.Event()
    control = machine_of(worker)
    endpoint = control.server(0).endpoint
    streams = [StreamConnection(0, connect(endpoint, None, True, soon()), 1) for _ in range(3)]
    callers = [Caller(stream, expected, seed, until) for seed, stream in enumerate(streams)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    for thread in threads:
        thread.start()
    draw = random.Random(9)
    for _ in range(NUM_EXCHANGES):
        keys = draw.sample(KEYS, draw.randrange(1, 8))
        worker.load(checkpoint_modules(keys))
        assert set(keys) <= set(worker.describe().keys)
        worker.unload(draw.sample(KEYS, 8))
    until.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    for stream in streams:
        stream.close()
    loop = control.processes[0].loop
    control.end()
    found = sum((caller.found for caller in callers), Counter())
    assert found["wrong"] == 0
    assert found["right"] > 20
    assert found["refused"] > 20
    assert worker.describe().routed_rows >= len(ROWS) * found["right"]
    assert loop is None or loop.num_pairs > 0


@needs_native
def test_a_layer_that_comes_later_is_served_in_the_loop() -> None:
    kernels = choose_kernels("native", "cpu")
    worker, expected = empty_worker(kernels), rows_of_all(kernels)
    control = machine_of(worker)
    stream = StreamConnection(0, connect(control.server(0).endpoint, None, True, soon()), 1)
    for number, (layer, slot) in enumerate([(1, 900), (0, 2**32 - 1), (1, 0), (0, 5)], 1):
        worker.load(checkpoint_modules([(layer, slot)]))
        pending = stream.send(make_call(number, layer, [slot]))
        while pending.outcome is None:
            stream.receive()
        assert isinstance(pending.outcome, ExpertReply)
        assert np.array_equal(pending.outcome.y_ND, expected[layer, slot])
        assert control.loop(0).num_pairs == number * len(ROWS)
    stream.close()
    control.end()


@needs_native
@pytest.mark.parametrize("num_slots", [1, 2, 8, 9, 17, 100])
def test_every_slot_is_found_and_no_other(num_slots: int) -> None:
    """By one after the other and by halving: the tag is the loop's own word for what it ran."""
    worker = empty_worker(choose_kernels("native", "cpu"))
    slots = sorted(random.Random(num_slots).sample(range(3 * num_slots), num_slots))
    worker.load(checkpoint_modules([(0, slot) for slot in slots]))
    control = machine_of(worker)
    stream = StreamConnection(0, connect(control.server(0).endpoint, None, True, soon()), 1)
    for call_id, slot in enumerate(range(3 * num_slots + 2), 1):
        call = make_call(call_id, 0, [slot])
        pending = stream.send(call)
        while pending.outcome is None:
            stream.receive()
        assert isinstance(pending.outcome, ExpertReply if slot in slots else Failure)
        if isinstance(pending.outcome, ExpertReply):
            validate_reply(0, call, pending.outcome)
    assert control.loop(0).num_pairs == num_slots * len(ROWS)
    stream.close()
    control.end()


@needs_native
def test_what_is_no_table_is_refused_by_the_loop() -> None:
    assert HAS_LOOP
    from_worker = make_worker(CONFIG, placed(2, 5, 2), 0, kernels=choose_kernels("native", "cpu"))
    held = from_worker._held
    assert held is not None
    loop = ServeLoop()
    with pytest.raises(ValueError, match="65536 is no layer"):
        loop.exchange(65536, held.bank)
    with pytest.raises(ValueError, match="-1 is no layer"):
        loop.exchange(-1, held.bank)
    unsorted = held.bank.with_layer(0, (2, 0), {})
    with pytest.raises(ValueError, match="not those of a table, in ascending order"):
        loop.exchange(0, unsorted)
    loop.exchange(0, held.bank)
    loop.exchange(7, held.bank)
