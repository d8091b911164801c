import pytest

from coordinator.server.open_fleet import threads_of_each
from moe_model.machine import Cores


@pytest.mark.parametrize(
    ("num_workers", "cores", "by_quota", "by_cores"),
    [
        (1, 1, 1, 1),
        (1, 4, 4, 4),
        (2, 1, 1, 1),
        (2, 2, 1, 2),
        (2, 4, 2, 4),
        (3, 4, 1, 2),
        (4, 16, 4, 8),
        (5, 2, 1, 1),
    ],
)
def test_workers_of_one_machine_have_twice_their_share_unless_a_quota_would_stop_them(
    num_workers: int, cores: int, by_quota: int, by_cores: int
) -> None:
    assert threads_of_each(num_workers, Cores(cores, "", is_quota=True)) == by_quota
    assert threads_of_each(num_workers, Cores(cores, "")) == by_cores
