"""What a pool does about answers that are late, and about experts that somebody is bringing back."""

import math
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.patience import Patience
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.placement.placement import Placement
from expert_workers.transports.base import FailureReason
from moe_model.config import ModelConfig
from moe_model.errors import ClusterError, ExpertsLostError, FencedError, ReplyError, WorldError
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog
from tests.examples import examples
from tests.expert_workers.fake_links import Fault, GivenLinks, after, changes, fails, silent
from tests.expert_workers.fakes import (
    PoolWorld,
    make_config,
    make_local,
    make_pool,
    make_routing,
    make_rows,
)

CONFIG = make_config()
X_TD = make_rows(9, CONFIG)
ROUTING = make_routing(9, CONFIG.n_experts, 2)
EXPECTED = make_local(CONFIG).forward(1, X_TD, ROUTING)
PATIENT = PoolOptions(rescue_patience=20)
# So many dispatches, and it is known what is usual.
MANY = 30


def settle_in(pool: ExpertPool, world: PoolWorld, routing: Routing = ROUTING) -> None:
    """Every call takes a while, so that a busy machine does not make one worker look slow; and the pool
    knows how long."""
    for link in world.links.values():
        link.usual = after(0.004)
    for _ in range(MANY):
        pool.forward(1, X_TD, routing)
    world.forget_calls()


def three_workers(
    holders: dict[int, tuple[int, ...]], second: list[int]
) -> tuple[ExpertPool, PoolWorld, Routing]:
    """A pool that has settled in, with these holders of each column of layer 1; each row goes to column 0 or
    1, and to the one of `second`."""
    placed = {(0, expert): (0,) for expert in range(5)}
    world = PoolWorld(CONFIG, Placement(placed | {(1, c): r for c, r in holders.items()}), torch.float32)
    world.pool = pool = ExpertPool(
        Catalog.of_checkpoint(ModelConfig(n_layers=2, n_experts=5)),
        GivenLinks(world.plane),
        HEDGED,
        world.rescuer,
    )
    world.publish()
    ids_TK = torch.tensor([[0] * 5 + [1] * 4, second]).T.contiguous()
    routing = Routing(torch.full((9, 2), 0.5), ids_TK, torch.zeros(9, 5))
    settle_in(pool, world, routing)
    return pool, world, routing


class Publishing:
    """Publishes routes from another thread, once somebody asks to be rescued."""

    def __init__(self, world: PoolWorld) -> None:
        self.threads: list[threading.Thread] = []
        self._world = world

    def __call__(self) -> None:
        if not self.threads:
            thread = threading.Thread(target=self.publish)
            self.threads.append(thread)
            thread.start()

    def publish(self) -> None:
        self._world.renew(*(rank for rank, link in self._world.links.items() if link.failure is not None))
        self._world.publish()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def test_a_step_goes_on_when_lost_experts_are_back() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=PATIENT)
    world.links[1].faults.append(fails(FailureReason.DIED))
    publishing = world.rescuer.on_rescue = Publishing(world)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    publishing.join()
    assert world.rescuer.reasons == [(1, FailureReason.DIED)]
    assert len(world.rescuer.rescues) == 1
    assert pool.adopted == 2


def test_dispatches_that_overlap_go_on_as_well() -> None:
    pool, world = make_pool(CONFIG, 3, 1, options=PATIENT)
    world.links[1].faults.append(fails(FailureReason.DIED))
    publishing = world.rescuer.on_rescue = Publishing(world)
    begun = [pool.begin(1, X_TD, ROUTING) for _ in range(3)]
    for dispatch in begun:
        assert torch.equal(pool.finish(dispatch), EXPECTED)
    publishing.join()
    assert world.rescuer.reasons == [(1, FailureReason.DIED)]


def test_each_loss_is_waited_for_anew() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(rescue_patience=0.05))
    world.links[1].faults.append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    world.renew(1)
    world.publish()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    pool.found()
    assert pool.wait_for_lost(0), "all the time there is"
    pool._routes.patience = Patience(PATIENT)
    world.links[1].faults.append(fails(FailureReason.DIED))
    publishing = world.rescuer.on_rescue = Publishing(world)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    publishing.join()


def test_the_time_to_wait_counts_from_the_first_step_that_lacks_something() -> None:
    """What a step waits inside is part of it, whatever is found in between."""
    limit = 0.3
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(wait_timeout=limit, rescue_patience=60))
    assert pool.wait_for_lost(0)
    started = time.monotonic()
    for _ in range(2):
        world.links[1].faults.append(fails(FailureReason.DIED))
        with pytest.raises(ExpertsLostError):
            pool.forward(1, X_TD, ROUTING)
        assert time.monotonic() - started >= limit
        assert not pool.wait_for_lost(60), "no more time"
    assert world.rescuer.rescues


def test_a_turn_of_waiting_is_no_longer_than_what_is_left() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(wait_timeout=0.3, rescue_patience=0))
    world.links[1].faults.append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    assert pool.wait_for_lost(3600)
    assert not pool.wait_for_lost(3600)


def test_once_all_are_back_who_comes_after_the_time_was_over_is_waited_for_anew() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(wait_timeout=1e-3))
    world.links[1].faults.append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    assert not pool.wait_for_lost(0)
    world.renew(1)
    world.publish()
    pool.idle()
    assert pool.wait_for_lost(0)


@pytest.mark.parametrize("why", [FencedError("taken over"), ClusterError("the head is gone")])
def test_who_is_over_waits_for_nothing(why: WorldError) -> None:
    """Neither the step that waits at that moment, nor those that come."""
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(wait_timeout=3600, rescue_patience=3600))
    world.links[1].faults.append(fails(FailureReason.FENCED))
    world.rescuer.on_rescue = lambda: pool.give_up(why)
    for _ in range(2):
        with pytest.raises(type(why), match=str(why)):
            pool.forward(1, X_TD, ROUTING)
    assert len(world.rescuer.rescues) == 1
    pool.give_up(ReplyError("another reason"))
    pool.await_news(3600)
    with pytest.raises(type(why)):
        pool.forward(1, X_TD, ROUTING)


def test_news_end_a_wait_for_news() -> None:
    pool, world = make_pool(CONFIG, 1, 1)
    pool.idle()
    thread = threading.Thread(target=world.publish)
    started = time.monotonic()
    thread.start()
    pool.await_news(60)
    thread.join()
    assert time.monotonic() - started < 30
    pool.idle()
    started = time.monotonic()
    pool.await_news(0.05)
    assert 0.05 <= time.monotonic() - started < 30


HEDGED = PoolOptions(call_timeout=30, least_timeout=30, hedge_floor=0.03)


def test_a_replica_is_asked_as_well_when_a_worker_takes_unusually_long() -> None:
    pool, world = make_pool(CONFIG, 2, 2, options=HEDGED)
    settle_in(pool, world)
    link = world.links[1]
    link.faults.append(silent())
    started = time.monotonic()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert 0.03 <= time.monotonic() - started < 10
    assert len(link.calls) == 1
    assert len(world.links[0].calls) == 2
    assert pool.stats().num_hedged == 1
    assert not world.rescuer.losses


def test_who_owes_an_answer_gets_no_rows_until_it_has_come_and_is_not_used() -> None:
    pool, world = make_pool(CONFIG, 2, 2, options=HEDGED)
    settle_in(pool, world)
    link = world.links[1]
    link.faults.append(silent())
    assert torch.equal(pool.forward(1, X_TD + 1, ROUTING), make_local(CONFIG).forward(1, X_TD + 1, ROUTING))
    num_rows = pool.stats().workers[1].rows
    world.forget_calls()
    for _ in range(MANY):
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert not link.calls
    link.answer()
    deadline = time.monotonic() + 30
    while not link.calls:
        assert time.monotonic() < deadline
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert pool.stats().workers[1].rows == num_rows + link.calls[0].num_pairs
    assert not world.rescuer.losses


def test_who_usually_gets_no_rows_is_asked_where_there_is_no_other_replica() -> None:
    """Worker 0 owes an answer when worker 1 is late as well: it is tried before the deadline has passed."""
    pool, world = make_pool(CONFIG, 2, 2, options=HEDGED)
    settle_in(pool, world)
    world.links[0].faults.append(silent())
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    world.forget_calls()
    world.links[1].faults.append(silent())
    started = time.monotonic()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert time.monotonic() - started < 10, "the deadline is 30 s"
    assert [len(world.links[rank].calls) for rank in range(2)] == [1, 1]
    assert not world.rescuer.losses


def test_only_who_answers_first_counts_when_both_do() -> None:
    pool, world = make_pool(CONFIG, 2, 2, options=HEDGED)
    settle_in(pool, world)
    world.links[1].faults.append(after(0.1))
    world.links[0].faults.extend([after(0.004), after(0.3)])
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert pool.stats().num_hedged >= 1
    assert not world.rescuer.losses


def test_who_is_not_heard_of_until_its_deadline_is_lost() -> None:
    options = PoolOptions(call_timeout=1.0, least_timeout=0.3, hedge_floor=0.03)
    pool, world = make_pool(CONFIG, 2, 2, options=options)
    settle_in(pool, world)
    world.links[1].faults.append(silent())
    started = time.monotonic()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    while not world.rescuer.losses:
        assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
        assert time.monotonic() - started < 30
    assert time.monotonic() - started >= 0.3
    [(lost, failure)] = world.rescuer.losses
    assert lost.endpoint is world.links[1]
    assert (failure.reason, failure.message) == (FailureReason.LATE, "worker 1: no answer in time")


def test_idle_finds_who_is_late() -> None:
    options = PoolOptions(call_timeout=1.0, least_timeout=0.2, hedge_floor=0.03)
    pool, world = make_pool(CONFIG, 2, 2, options=options)
    settle_in(pool, world)
    world.links[1].faults.append(silent())
    pool.forward(1, X_TD, ROUTING)
    started = time.monotonic()
    while not world.rescuer.losses:
        pool.idle()
        pool.await_news(0.01)
        assert time.monotonic() - started < 30
    assert world.rescuer.reasons == [(1, FailureReason.LATE)]


def test_without_a_replica_one_deadline_is_waited_and_the_worker_is_lost() -> None:
    options = PoolOptions(call_timeout=0.2, least_timeout=0.2, rescue_patience=20)
    pool, world = make_pool(CONFIG, 2, 1, options=options)
    world.links[1].faults.append(silent())
    publishing = world.rescuer.on_rescue = Publishing(world)
    started = time.monotonic()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert 0.2 <= time.monotonic() - started < 10
    publishing.join()
    assert world.rescuer.reasons == [(1, FailureReason.LATE)]


def test_a_silent_worker_costs_dispatches_that_overlap_one_deadline_together() -> None:
    options = PoolOptions(call_timeout=2.0, least_timeout=2.0)
    pool, world = make_pool(CONFIG, 2, 2, options=options)
    world.links[1].usual = silent()
    started = time.monotonic()
    begun = [pool.begin(1, X_TD, ROUTING) for _ in range(4)]
    for dispatch in begun:
        assert torch.equal(pool.finish(dispatch), EXPECTED)
    assert 2.0 <= time.monotonic() - started < 2 * 2.0, "one deadline, not one each"
    assert world.rescuer.reasons == [(1, FailureReason.LATE)]


def rows_of(world: PoolWorld, rank: int) -> int:
    return sum(call.num_pairs for call in world.links[rank].calls)


def test_who_owes_an_answer_gets_rows_all_the_same_where_nobody_else_can() -> None:
    pool, world = make_pool(CONFIG, 2, 2, options=HEDGED)
    settle_in(pool, world)
    world.links[1].faults.append(silent())
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    world.links[0].faults.append(fails(FailureReason.DIED))
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert len(world.links[1].calls) == 2
    assert world.rescuer.reasons == [(0, FailureReason.DIED)]
    assert not world.rescuer.rescues


def test_a_replica_s_answer_for_one_late_worker_counts_though_another_late_one_was_quicker() -> None:
    """Workers 0 and 1 are late; worker 2 is asked for both. Then worker 0 answers, and worker 1 never."""
    holders = {0: (0, 2), 1: (1, 2), 2: (2,), 3: (2,), 4: (2,)}
    pool, world, routing = three_workers(holders, [2] * 9)
    world.links[0].faults.append(after(0.1))
    world.links[1].faults.append(silent())
    world.links[2].faults.extend([after(0.004), after(0.3), after(0.3)])
    started = time.monotonic()
    assert torch.equal(pool.forward(1, X_TD, routing), make_local(CONFIG).forward(1, X_TD, routing))
    assert time.monotonic() - started < 10, "the deadline is 30 s"
    assert [call.segments for call in world.links[2].calls] == [((2, 9),), ((0, 5),), ((1, 4),)]


def test_who_answers_after_a_replica_has_answered_for_some_of_it_is_not_used_for_the_rest() -> None:
    """Worker 1 is late with columns 0 and 1; worker 0 answers for the one at once, worker 2 later still."""
    holders = {0: (1, 0), 1: (1, 2), 2: (0,), 3: (2,), 4: (0,)}
    pool, world, routing = three_workers(holders, [2, 2, 3, 3, 3, 3, 3, 3, 4])
    world.links[1].faults.append(after(0.1))
    world.links[2].faults.extend([after(0.004), after(0.3)])
    assert torch.equal(pool.forward(1, X_TD, routing), make_local(CONFIG).forward(1, X_TD, routing))
    asked = {rank: [call.segments for call in link.calls] for rank, link in world.links.items()}
    assert asked == {0: [((2, 2), (4, 1)), ((0, 5),)], 1: [((0, 5), (1, 4))], 2: [((3, 6),), ((1, 4),)]}
    assert not world.rescuer.losses


FAULTS = st.sampled_from(
    [
        fails(FailureReason.DIED),
        fails(FailureReason.RAISED),
        changes(call_id=0),
        Fault(lambda call, reply: reply._replace(y_ND=reply.y_ND * math.nan)),
        Fault(lambda call, reply: reply._replace(tag=reply.tag ^ 1), seconds=0.04),
        after(0.02),
        after(0.06),
        silent(),
        *[after(0.004)] * 8,
    ]
)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(FAULTS, max_size=8), min_size=4, max_size=4), st.integers(1, 4), st.integers(1, 3))
def test_whatever_the_workers_do_every_result_is_right(
    scripts: list[list[Fault]], replicas: int, num_overlapping: int
) -> None:
    options = PoolOptions(call_timeout=0.15, least_timeout=0.15, hedge_floor=0.01, rescue_patience=20)
    pool, world = make_pool(CONFIG, 4, replicas, options=options)
    publishing = Publishing(world)
    world.rescuer.on_rescue = publishing.publish
    settle_in(pool, world)
    for link, faults in zip(world.links.values(), scripts, strict=True):
        link.faults.extend(faults)
    for _ in range(4):
        begun = [pool.begin(1, X_TD, ROUTING) for _ in range(num_overlapping)]
        for dispatch in begun:
            assert torch.equal(pool.finish(dispatch), EXPECTED)
