"""Round trips over the product's own stream, to a worker whose experts are next to nothing."""

import itertools
import tempfile
import time
from collections.abc import Hashable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dispatch import ROW_BYTES, SMALLEST, WIDTH
from expert_workers.transports.base import Site
from expert_workers.transports.stream.transport import StreamTransport
from expert_workers.wire import ExpertCall, ExpertReply, ReplyForm, validate_reply
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.versions.expert_versions import checkpoint_modules
from scaling.probe.timing import quantile

SMALL, MIDDLE, LARGE = 2 << 10, 64 << 10, 1 << 20
_CONNECT_S = 20.0
_CALL_S = 30.0
_LEAST_CALLS = 5


class Served:
    """A worker of one expert with one hidden unit, by TCP on `host`, until it is closed."""

    def __init__(self, host: str) -> None:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="expertmesh-link-")))
            initialise_checkpoint(folder / "model", SMALLEST)
            worker = ExpertWorker(WorkerSpec(0, str(folder / "model"), num_threads=1))
            worker.load(checkpoint_modules([(0, 0)]))
            served = StreamTransport(use_unix=False).serve(worker, Site(host))
            stack.callback(served.close)
            self._stack = stack.pop_all()
        self.endpoint: Any = served.endpoint

    def close(self) -> None:
        self._stack.close()


def round_trips(endpoint: Hashable, sizes: tuple[int, ...], budget_s: float) -> dict[int, float]:
    """Seconds of a call with so many bytes, which the answer has too. Raises RuntimeError for one that fails,
    and what connecting raises."""
    transport = StreamTransport(use_unix=False)
    link = transport.connect(0, endpoint, _CONNECT_S)  # type: ignore[arg-type]
    try:
        return {size: _seconds(transport, link, size, budget_s) for size in sizes}
    finally:
        link.close()


def _seconds(transport: StreamTransport, link: Any, num_bytes: int, budget_s: float) -> float:
    x_RD = np.ones((num_bytes // ROW_BYTES, WIDTH), np.float32)
    weights_P = np.ones(len(x_RD), np.float32)
    plane, found = transport.plane(), []
    end = time.perf_counter() + budget_s
    for number in itertools.count(1):
        call = ExpertCall(number, 0, 0, ((0, len(x_RD)),), None, weights_P, x_RD, "float32", ReplyForm.SUM)
        before = time.perf_counter()
        pending = link.send(call)
        plane.wait([pending], time.monotonic() + _CALL_S)
        if not isinstance(pending.outcome, ExpertReply):
            raise RuntimeError(f"a call over the network failed: {pending.outcome}")
        validate_reply(0, call, pending.outcome)
        found.append(time.perf_counter() - before)
        if len(found) >= _LEAST_CALLS and time.perf_counter() > end:
            break
    return quantile(found)
