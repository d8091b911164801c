"""The limits of a key over several fronts: what it takes through one is taken for all."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator.api.security.quotas import KeyQuotas
from coordinator.api.shared.errors import ApiError
from coordinator.config.key_limits import Limits
from coordinator.metrics.ledger import Ledger
from tests.coordinator.api.clock import Clock
from tests.coordinator.api.security.test_quotas import Given, ask, refused


class Fronts:
    """Two, with one clock, as two processes of a machine have."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.clock, self.given = Clock(), Given(a=limits)
        self._folder = folder
        self.first, self.second = self.front(0), self.front(1)

    def front(self, number: int) -> KeyQuotas:
        return KeyQuotas(self.given, self.clock, Ledger.shared(self._folder, number, 2))


def test_requests_at_once(tmp_path: Path) -> None:
    fronts = Fronts(tmp_path, Limits(concurrent=2))
    with fronts.first.enter("a"):
        with fronts.second.enter("a"):
            for front in (fronts.first, fronts.second):
                assert "2 requests at once" in refused(front).message
        ask(fronts.second)
    ask(fronts.first)


def test_requests_per_second(tmp_path: Path) -> None:
    fronts = Fronts(tmp_path, Limits(rps=4))
    for front in 2 * [fronts.first, fronts.second]:
        ask(front)
        fronts.clock.now += 0.001
    assert refused(fronts.first).retry_after == pytest.approx(0.25, abs=0.01)
    assert refused(fronts.second).retry_after == pytest.approx(0.25, abs=0.01)
    fronts.clock.now += 0.25
    ask(fronts.second)
    refused(fronts.first)


def test_one_that_was_idle_neither_saves_up_nor_pays_for_what_was_filled_since(tmp_path: Path) -> None:
    fronts = Fronts(tmp_path, Limits(rps=4))
    ask(fronts.second)
    for _ in range(1000):
        fronts.clock.now += 0.25
        ask(fronts.first)
    fronts.clock.now += 0.25
    ask(fronts.second)
    fronts.clock.now += 0.25
    ask(fronts.second)


def test_tokens_per_minute(tmp_path: Path) -> None:
    fronts = Fronts(tmp_path, Limits(tokens_per_minute=600))
    ask(fronts.second)
    fronts.clock.now += 0.001
    fronts.first.spent("a", 700)
    assert refused(fronts.second).retry_after == pytest.approx(10.1)
    fronts.clock.now += 10.2
    ask(fronts.second)


def test_limits_that_change_begin_anew_in_all(tmp_path: Path) -> None:
    fronts = Fronts(tmp_path, Limits(tokens_per_minute=600))
    fronts.first.spent("a", 10_000)
    refused(fronts.second)
    fronts.given.limits = {"a": Limits(tokens_per_minute=60)}
    ask(fronts.second)
    fronts.clock.now += 0.001
    fronts.second.spent("a", 60)
    refused(fronts.first)


def test_a_front_that_dies_gives_back_its_places_and_no_tokens(tmp_path: Path) -> None:
    fronts = Fronts(tmp_path, Limits(concurrent=1, tokens_per_minute=600))
    with ExitStack() as held:
        held.enter_context(fronts.first.enter("a"))
        refused(fronts.second)
        again = fronts.front(0)
        ask(fronts.second)
        fronts.clock.now += 0.001
        fronts.second.spent("a", 600)
        with pytest.raises(ApiError, match="tokens per minute"):
            ask(again)
        held.pop_all()
