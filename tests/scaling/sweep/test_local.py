"""Servers of this machine, whose workers may be on another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from scaling.cell import Fault
from scaling.sweep import local
from scaling.sweep.local import LocalServer

WORKERS = [SimpleNamespace(rank=0, host="", pid=1), SimpleNamespace(rank=1, host="192.0.2.7", pid=1)]


@contextmanager
def control(address: str) -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(topology=lambda: WORKERS)


@pytest.mark.parametrize(("worker", "said"), [(1, "worker 1 is on another machine"), (2, "no worker 2")])
def test_a_fault_is_done_to_no_other_process(monkeypatch: pytest.MonkeyPatch, worker: int, said: str) -> None:
    monkeypatch.setattr(local, "ControlClient", control)
    monkeypatch.setattr(local, "worker_fault", lambda fault, pid: pytest.fail("it was done"))
    server = LocalServer(1, {"grpc": "", "http": "", "control": ""})
    with pytest.raises(RuntimeError, match=said):
        server.inject(Fault("kill", worker=worker))
