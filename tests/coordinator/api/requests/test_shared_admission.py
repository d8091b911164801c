"""Admission over several fronts: one limit for all, also while two ask at once, and after a death."""

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from coordinator.api.requests.admission import Admission
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.config.service import AdmissionConfig
from coordinator.metrics.ledger import Ledger

CONFIG = AdmissionConfig(max_requests=5, max_tokens=100)


def fronts(folder: Path) -> tuple[Admission, Admission]:
    first, second = (Admission(CONFIG, Ledger.shared(folder, number, 2)) for number in range(2))
    return first, second


def refused(ask: Callable[[], None]) -> str:
    with pytest.raises(ApiError) as caught:
        ask()
    assert caught.value.reason is Reason.QUEUE_FULL
    return caught.value.message


def test_what_another_front_admitted_counts(tmp_path: Path) -> None:
    first, second = fronts(tmp_path)
    with first.ticket() as mine, second.ticket() as theirs:
        mine.take_sequences(3)
        assert "3 of 5 sequences" in refused(lambda: theirs.take_sequences(3))
        theirs.take_sequences(2)
        assert first.num_sequences == second.num_sequences == 5
        assert "5 of 5" in refused(first.check_room)
        mine.wait_with(60)
        assert "60 of 100 prompt tokens" in refused(lambda: theirs.wait_with(50))
        theirs.wait_with(40)
    assert (first.num_sequences, second.num_waiting_tokens) == (0, 0)


def test_a_long_prompt_is_taken_only_when_no_front_has_one_that_waits(tmp_path: Path) -> None:
    first, second = fronts(tmp_path)
    with first.ticket() as mine, second.ticket() as theirs:
        mine.wait_with(1)
        refused(lambda: theirs.wait_with(1000))
        mine.started(1)
        theirs.wait_with(1000)
        assert first.num_waiting_tokens == 1000


def test_what_a_dead_front_held_is_given_back(tmp_path: Path) -> None:
    first, second = fronts(tmp_path)
    with ExitStack() as held:
        # Its process is killed: nothing is released by it.
        held.enter_context(first.ticket()).take_sequences(5)
        refused(second.check_room)
        Ledger.shared(tmp_path, 0, 2)
        second.check_room()
        held.pop_all()


def admit(folder: Path, number: int, start: Barrier, most: int) -> None:
    """Takes a place and gives it back again and again; ends with 1 where more than `most` had one at once."""
    ledger = Ledger.shared(folder, number, 2)
    admission, inside = Admission(AdmissionConfig(max_requests=most), ledger), ledger.held("inside")
    start.wait()
    num_admitted = 0
    for _ in range(20_000):
        try:
            admission.add_sequences(1)
        except ApiError:
            continue
        num_admitted += 1
        if inside.add(1) > most:
            raise SystemExit(1)
        inside.add(-1)
        admission.add_sequences(-1)
    raise SystemExit(0 if num_admitted else 2)


def test_two_processes_that_ask_at_once_stay_within_the_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    processes = [context.Process(target=admit, args=(tmp_path, number, start, 1)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
