"""What an engine has counted so far."""

from dataclasses import dataclass

from coordinator.engine.messages.commands import Command


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """Series of the metrics of `coordinator/metrics/of_engine.py`: a name, the values of its labels, and its
    numbers. They begin at 0 with each engine's process."""

    series: tuple[tuple[str, tuple[str, ...], tuple[float, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class ReadMetrics(Command[MetricsSnapshot]):
    """What has been counted by now."""
