"""The shared part of a model, read while its experts are: neither waits for the other's disk or processor."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from coordinator.config.engine import EngineConfig
from coordinator.server.compute import device_of, dtype_of, shared_kernels_of
from moe_model.checkpoint.reader import Checkpoint, OnBytes
from moe_model.halt import Halt
from moe_model.layers.dense import SharedModel
from moe_model.loading import load_shared

_FOREVER = 1e9


class SharedPart:
    """What is there of it, and then it. `kernels` are those that pack it."""

    def __init__(self, thread: ThreadPoolExecutor, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Begins. Raises ConfigError."""
        self.kernels = shared_kernels_of(config)
        self.stopped = Halt()
        self._there = 0, 0
        self._on_bytes: OnBytes | None = None
        self._loading: Future[SharedModel] = thread.submit(
            load_shared,
            checkpoint,
            dtype_of(config),
            device_of(config),
            self.kernels,
            self._told,
            config.shared_dtype,
        )

    def result(self, on_bytes: OnBytes | None = None) -> SharedModel:
        """Waits for it, and tells of its bytes meanwhile. Raises CheckpointError naming file and tensor;
        HaltedError when it was stopped first."""
        self._on_bytes = on_bytes
        done, total = self._there
        if on_bytes is not None and total:
            on_bytes(done, total)
        return self.stopped.result(self._loading, _FOREVER)

    def _told(self, done: int, total: int) -> None:
        """On the thread, after each tensor."""
        self.stopped.check()
        self._there = done, total
        if self._on_bytes is not None:
            self._on_bytes(done, total)


@contextmanager
def loading_shared(checkpoint: Checkpoint, config: EngineConfig, halt: Halt) -> Iterator[SharedPart]:
    """Read from now on, on a thread that ends with the block, or soon after `halt` was set. Raises
    ConfigError."""
    with ThreadPoolExecutor(1, "shared") as thread:
        shared = SharedPart(thread, checkpoint, config)
        # It ends when it has loaded.
        thread.shutdown(wait=False)
        halt.then(shared.stopped.set)
        try:
            yield shared
        finally:
            shared.stopped.set()
