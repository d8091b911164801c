"""What the command says, and when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coordinator.config.serve import ServeConfig
from coordinator.server import serving
from coordinator.server.phases import Phases
from coordinator.server.stop_signals import signals_taken
from moe_model.halt import Halt


def test_who_is_told_to_stop_at_the_last_moment_of_a_start_never_says_that_it_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @asynccontextmanager
    async def opened(config: ServeConfig, phases: Phases, halt: Halt) -> AsyncIterator[Any]:
        halt.set()
        yield None

    def announce(*_: object) -> None:
        pytest.fail("it was told to stop")

    monkeypatch.setattr(serving, "open_server", opened)
    monkeypatch.setattr(serving, "_announce", announce)
    with signals_taken(for_good=False):
        assert asyncio.run(serving.serve(ServeConfig("checkpoint"))) == 0
