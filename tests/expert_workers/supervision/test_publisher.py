from expert_workers.dispatch.routes import Address
from expert_workers.supervision.publisher import Publisher
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from moe_model.layers.dispatch import ExpertKey
from tests.expert_workers.fakes import make_config, make_worker, placed
from tests.expert_workers.supervision.published import FakePool

WORKER = make_worker(make_config(), placed(2, 5, 1), 0)
A, B = (0, 0), (0, 1)


def ready(rank: int, *held: ExpertKey) -> SupervisedWorker:
    return SupervisedWorker(rank, address=Address(rank, 1, ""), held=frozenset(held))


def test_routes_are_published_where_they_are_others_than_before() -> None:
    pool, workers = FakePool(), [ready(0, A), ready(1), SupervisedWorker(2)]
    publisher = Publisher(pool)
    wanted: dict[int, Keys] = {0: frozenset([A]), 1: frozenset([B])}
    publisher.publish(workers, wanted, [B, A])
    publisher.publish(workers, wanted, [A, B])
    (first,) = pool.published
    assert (first.version, first.holders, set(first.addresses)) == (1, {A: (0,), B: ()}, {0, 1})
    assert publisher.routed == {0: {A}, 1: frozenset()}
    assert workers[1].missing == {B}
    workers[1].held = frozenset([B])
    publisher.publish(workers, wanted, [A, B])
    workers[0].address = Address(0, 2, "")
    publisher.publish(workers, wanted, [A, B])
    assert [routes.version for routes in pool.published] == [1, 2, 3], "holders, then an address"


def test_what_no_route_leads_to_is_in_excess_from_these_routes_on() -> None:
    pool, worker = FakePool(), ready(0, A, B)
    publisher = Publisher(pool)
    publisher.publish([worker], {0: frozenset([A])}, [A])
    assert worker.surplus is not None
    assert worker.surplus.keys == {B}
    assert worker.surplus.version == 1
