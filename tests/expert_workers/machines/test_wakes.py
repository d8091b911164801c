"""Signals beside descriptors."""

import os
import select
import signal
import threading

import pytest

from expert_workers.machines.wakes import Wakes
from moe_model.errors import HaltedError


def test_the_first_signal_ends_a_wait_and_the_second_hurries() -> None:
    with Wakes() as wakes:
        timer = threading.Timer(0.05, wakes.hear, [signal.SIGTERM])
        timer.start()
        with pytest.raises(HaltedError):
            wakes.wait(select.poll())
        assert wakes.wait_hurried(select.poll(), 0.01) == []
        again = threading.Timer(0.05, wakes.hear, [signal.SIGTERM])
        again.start()
        with pytest.raises(HaltedError):
            wakes.wait_hurried(select.poll())
        timer.join()
        again.join()


def test_a_descriptor_that_is_ready_is_told() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"x")
        with Wakes() as wakes:
            poll = select.poll()
            poll.register(read, select.POLLIN)
            assert wakes.wait(poll) == [read]
            wakes.pause(0.001)
    finally:
        os.close(read)
        os.close(write)


def test_a_signal_wins_over_a_descriptor() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"x")
        with Wakes() as wakes:
            poll = select.poll()
            poll.register(read, select.POLLIN)
            wakes.hear(signal.SIGINT)
            with pytest.raises(HaltedError):
                wakes.wait(poll)
    finally:
        os.close(read)
        os.close(write)
