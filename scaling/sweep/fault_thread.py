"""A fault at its time of a load, on a thread beside it."""

import threading
from types import TracebackType
from typing import Self

from scaling.cell import Fault
from scaling.topology import Running


class FaultThread:
    """A context manager around a load; `begin` is to be called as its first request is sent. Raises
    RuntimeError at the end of its block where the fault was not done."""

    def __init__(self, server: Running, fault: Fault | None) -> None:
        self._server, self._fault = server, fault
        self._begun, self._over = threading.Event(), threading.Event()
        self._failure: str | None = "the load did not begin"
        self._thread = threading.Thread(target=self._run, name="fault", daemon=True)

    def begin(self) -> None:
        self._begun.set()

    def __enter__(self) -> Self:
        if self._fault is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._begun.set()
        if self._fault is None:
            return
        self._thread.join()
        if self._failure is not None and kind is None:
            raise RuntimeError(self._failure)

    def _run(self) -> None:
        assert self._fault is not None
        self._begun.wait()
        if self._over.wait(self._fault.at_s):
            self._failure = f"fault: the load was over before {self._fault.at_s:g} s"
            return
        try:
            with self._server.inject(self._fault):
                self._over.wait(self._fault.seconds)
            self._failure = None
        except Exception as error:  # noqa: BLE001 - what a topology raises is told by the load's thread
            self._failure = f"{error}"
