"""The one line on standard output that says that a server can serve."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ready:
    """`where` it listens, as name=HOST:PORT of each port."""

    where: str
    num_workers: int
    num_replicas: int
    dtype: str
    device: str
    max_context: int
    kv_capacity_tokens: int
    startup_seconds: float

    def announce(self) -> None:
        sys.stdout.write(
            f"READY {self.where} workers={self.num_workers} replicas={self.num_replicas} "
            f"dtype={self.dtype} device={self.device} max_context={self.max_context} "
            f"kv_tokens={self.kv_capacity_tokens} startup_seconds={self.startup_seconds:.2f}\n"
        )
        sys.stdout.flush()
