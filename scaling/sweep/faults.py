"""What happens to a worker's process of this machine, for servers that are not in namespaces."""

from collections.abc import Iterator
from contextlib import contextmanager

from chaos.processes import FaultError, Process
from scaling.cell import Fault


@contextmanager
def worker_fault(fault: Fault, pid: int) -> Iterator[None]:
    """In force when the block begins; what can be healed is healed after it. Raises RuntimeError."""
    try:
        with Process(pid, fault.worker) as process:
            if fault.kind == "kill":
                process.kill()
                yield
            elif fault.kind == "pause":
                process.stop()
                try:
                    yield
                finally:
                    process.resume()
            else:
                raise RuntimeError(f"fault: {fault.kind} cannot be done to a worker of this machine")
    except FaultError as error:
        raise RuntimeError(f"fault: {error}") from error
