from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.worker_speeds import WorkerSpeeds
from expert_workers.transports.base import Link


class FakeLink:
    failure = None


LINKS: dict[int, Link] = {0: FakeLink(), 1: FakeLink()}  # type: ignore[dict-item]


def speeds_of(fixed_rows: float) -> WorkerSpeeds:
    """After calls of ten rows each, as a plan has them: the quick worker computes ten columns of one row, the
    slow one a column of ten rows. A column takes as long as its weights, with the slow one four times."""
    options = PoolOptions(first_costs={0: 1.0, 1: 4.0}, fixed_rows=fixed_rows)
    speeds = WorkerSpeeds(options, lambda: 1.0)
    for _ in range(100):
        speeds.took(0, speeds.size(10, 10), 0.010)
        speeds.took(1, speeds.size(10, 1), 0.004)
    return speeds


def test_a_worker_of_many_columns_is_as_quick_as_planned() -> None:
    assert speeds_of(fixed_rows=160.0).costs(LINKS) == {0: 1.0, 1: 4.0}


def test_a_calls_size_is_its_rows_where_columns_cost_nothing() -> None:
    assert WorkerSpeeds(PoolOptions()).size(10, 3) == 10
    assert WorkerSpeeds(PoolOptions(fixed_rows=2.5)).size(10, 3) == 17
