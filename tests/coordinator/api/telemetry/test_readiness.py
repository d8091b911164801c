"""Readiness as metrics: of a front that is alone, of several, and of one that dies."""

from pathlib import Path

from coordinator.api.telemetry.readiness import ReadinessMetrics
from coordinator.metrics.ledger import Ledger, release


def told(metrics: ReadinessMetrics) -> tuple[float, float]:
    """Whether it is ready, and how often it stopped being so."""
    (ready,), (losses,) = (family.samples for family in metrics.read("tiny"))
    assert ready.labels == losses.labels == {"model_name": "tiny"}
    return ready.value, losses.value


async def test_one_front_turns() -> None:
    metrics = ReadinessMetrics(Ledger())
    assert told(metrics) == (0, 0)
    for ready, expected in ((True, (1, 0)), (False, (0, 1)), (True, (1, 1)), (False, (0, 2))):
        await metrics.changed(ready)
        assert told(metrics) == expected


async def test_several_fronts_are_ready_when_each_is(tmp_path: Path) -> None:
    first, second = (ReadinessMetrics(Ledger.shared(tmp_path, number, 2)) for number in range(2))
    await first.changed(True)
    assert told(first) == told(second) == (0, 0)
    await second.changed(True)
    assert told(first) == told(second) == (1, 0)
    for metrics in (first, second):
        await metrics.changed(False)
        await metrics.changed(True)
    assert told(first) == told(second) == (1, 1), "what turns all of them is one loss"
    await second.changed(False)
    assert told(first) == told(second) == (0, 2)


async def test_a_front_that_has_died_is_not_ready_and_its_losses_stay(tmp_path: Path) -> None:
    first, second = (ReadinessMetrics(Ledger.shared(tmp_path, number, 2)) for number in range(2))
    for metrics in (first, second):
        await metrics.changed(True)
    await second.changed(False)
    await second.changed(True)
    release(tmp_path, 1)
    assert told(first) == (0, 1)
    again = ReadinessMetrics(Ledger.shared(tmp_path, 1, 2))
    await again.changed(True)
    assert told(first) == told(again) == (1, 1)
