"""What is done at one worker, and what others are good for meanwhile."""

from dataclasses import replace

import pytest

from expert_workers.dispatch.routes import Address
from expert_workers.supervision.worker_jobs import supply_of
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from expert_workers.transports.fleet import Supply
from tests.expert_workers.fakes import make_config, make_worker, placed

INFO = make_worker(make_config(), placed(2, 5, 1), 0).describe()
A, B, C = (0, 0), (0, 1), (1, 0)


def holding(rank: int, *keys: tuple[int, int]) -> SupervisedWorker:
    worker = SupervisedWorker(rank, address=Address(rank, 1, ""))
    worker.note_held(replace(INFO, rank=rank, keys=keys))
    return worker


@pytest.mark.parametrize(
    ("keys", "first", "supply"),
    [
        ({A}, set(), Supply((1,), is_urgent=False)),
        ({A, B}, set(), Supply((1, 2), is_urgent=False)),
        ({A, C}, {C}, Supply((1,), is_urgent=True)),
        ({C}, {C}, Supply((), is_urgent=True)),
    ],
)
def test_what_no_other_holds_is_urgent(keys: Keys, first: Keys, supply: Supply) -> None:
    worker, lost = holding(0, C), holding(3, C)
    lost.address = None
    others = [worker, holding(1, A), holding(2, B), lost]
    assert supply_of(frozenset(keys), worker, others) == (first, supply)
