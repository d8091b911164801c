"""Bytes, rates and times as people read them."""

import pytest

from coordinator.commands.amounts import format_count, progress

GB = 10**9


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, 60 * GB, 0.0, "0 B of 60.0 GB"),
        (0, 60 * GB, 9.0, "0 B of 60.0 GB"),
        (GB, 60 * GB, 0.4, "1.0 GB of 60.0 GB"),
        (GB, 3 * GB, 1.0, "1.0 GB of 3.0 GB, 1.0 GB/s, 2 s left"),
        (20 * GB, 60 * GB, 100.0, "20.0 GB of 60.0 GB, 200.0 MB/s, 3 min left"),
        (GB, 91 * GB, 100.0, "1.0 GB of 91.0 GB, 10.0 MB/s, 2 h 30 min left"),
        (3, 3, 1.0, "3 B of 3 B, 3 B/s, 0 s left"),
    ],
)
def test_progress(done: int, total: int, seconds: float, text: str) -> None:
    assert progress(done, total, seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (7_314_048, "7.31 M"),
        (999_999_999, "1000.00 M"),
        (10**9, "1.00 B"),
        (1_026_408_232_448, "1026.41 B"),
    ],
)
def test_counts_of_parameters(number: int, text: str) -> None:
    assert format_count(number) == text
