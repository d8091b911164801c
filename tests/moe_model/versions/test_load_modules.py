"""Modules that are loaded two at a time: their order, how many there are at once, and what ends it."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from moe_model.versions.expert_versions import ExpertModule
from moe_model.versions.load_modules import AT_ONCE, load_modules

PATIENCE = 10.0
MODULES = [ExpertModule(layer, expert, expert) for layer in (1, 2) for expert in (5, 6, 7, 8)]


class Disk:
    """Gives modules by their slot when it is told to; knows how many are asked for at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free: set[int] = set()
        self.asked: list[int] = []
        self.asking = self.most = 0

    def load(self, module: ExpertModule) -> int:
        number = MODULES.index(module)
        with self._changed:
            self.asked.append(number)
            self.asking += 1
            self.most = max(self.most, self.asking)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: number in self._free, PATIENCE)
            self.asking -= 1
        return number

    def free(self, *numbers: int) -> None:
        with self._changed:
            self._free.update(numbers)
            self._changed.notify_all()

    def wait_until_asked(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, PATIENCE)


def load_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("load_")]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert load_threads() == []


def test_they_come_in_their_order_and_two_are_loaded_at_once() -> None:
    disk, found = Disk(), list[int]()
    consumer = threading.Thread(target=lambda: found.extend(load_modules(disk.load, MODULES)))
    consumer.start()
    disk.wait_until_asked(AT_ONCE)
    # The second is there first, so the third is begun; nothing comes before the first.
    disk.free(1)
    disk.wait_until_asked(3)
    assert found == []
    assert len(load_threads()) == AT_ONCE
    disk.free(*range(len(MODULES)))
    consumer.join(PATIENCE)
    assert found == list(range(len(MODULES)))
    assert disk.most == AT_ONCE


def test_no_modules_are_no_threads() -> None:
    assert list(load_modules(Disk().load, [])) == []


def test_the_first_that_fails_is_told_and_the_rest_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [ExpertModule(0, expert, expert) for expert in range(10)]
    asked, second, cancelled = list[int](), threading.Event(), threading.Event()
    cancel, calls = Future.cancel, list[bool]()

    def load(module: ExpertModule) -> int:
        asked.append(module.expert)
        if module.expert == 1:
            second.set()
            raise ValueError("1")
        if module.expert == 0:
            # The second has failed already when the first does.
            assert second.wait(PATIENCE)
            raise KeyError("0")
        # It is a slow one, until all others have been called off.
        assert cancelled.wait(PATIENCE)
        return 0

    def noted(future: "Future[int]") -> bool:
        calls.append(cancel(future))
        if len(calls) == len(many) - 1:
            cancelled.set()
        return calls[-1]

    monkeypatch.setattr(Future, "cancel", noted)
    with pytest.raises(KeyError, match="0"):
        list(load_modules(load, many))
    assert len(asked) <= 2 * AT_ONCE


def test_who_wants_no_more_waits_for_those_that_are_begun_only() -> None:
    disk = Disk()
    disk.free(0)
    found = load_modules(disk.load, MODULES)
    assert next(found) == 0
    disk.wait_until_asked(3)
    disk.free(1, 2)
    found.close()  # type: ignore[attr-defined]
    assert sorted(disk.asked) == [0, 1, 2]
