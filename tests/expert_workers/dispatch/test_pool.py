import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.transports.base import FailureReason
from expert_workers.wire import ExpertCall, ExpertReply
from moe_model.errors import ExpertsLostError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog, ExpertModule, checkpoint_modules
from tests.expert_workers.fake_links import Fault, changes, fails
from tests.expert_workers.fakes import (
    PoolWorld,
    make_config,
    make_expert,
    make_experts,
    make_local,
    make_pool,
    make_routing,
    make_rows,
)
from tests.models import local_experts

CONFIG = make_config()
X_TD = make_rows(9, CONFIG)
ROUTING = make_routing(9, CONFIG.n_experts, 2)
EXPECTED = make_local(CONFIG).forward(1, X_TD, ROUTING)
# A step waits so long for lost experts, of which nobody looks after.
BRIEF = PoolOptions(rescue_patience=0.05)


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.data(),
)
def test_it_equals_local_experts_to_the_last_bit(
    n_experts: int, replicas: int, num_workers: int, num_tokens: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    config = make_config(n_experts=n_experts)
    pool, _ = make_pool(config, num_workers, min(replicas, num_workers), dtype)
    top_k = data.draw(st.integers(1, n_experts))
    x_TD, routing = make_rows(num_tokens, config, dtype), make_routing(num_tokens, n_experts, top_k)
    y_TD = pool.forward(1, x_TD, routing)
    assert y_TD.dtype == dtype
    assert torch.equal(y_TD, make_local(config, dtype).forward(1, x_TD, routing))


def test_a_hidden_state_is_sent_once_to_each_worker_that_needs_it() -> None:
    pool, world = make_pool(CONFIG, 1, 1)
    pool.forward(0, X_TD, ROUTING)
    [(_, call)] = world.calls
    assert call.x_RD.shape[0] == 9
    assert call.num_pairs == 18


def test_a_worker_without_rows_is_not_called() -> None:
    pool, world = make_pool(CONFIG, 7, 1)
    pool.forward(0, X_TD[:1], make_routing(1, CONFIG.n_experts, 1))
    assert len(world.calls) == 1


def test_all_calls_are_waited_for_once_with_one_deadline() -> None:
    pool, world = make_pool(CONFIG, 3, 1)
    before = time.monotonic()
    pool.forward(0, X_TD, ROUTING)
    [deadline] = world.plane.deadlines
    assert before + 10 <= deadline <= time.monotonic() + 10
    assert len(world.calls) == 3


def test_calls_are_of_the_coordinator_s_epoch() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(epoch=7))
    for link in world.links.values():
        link.worker.claim("a coordinator", 7)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert {call.epoch for _, call in world.calls} == {7}


BAD_REPLIES: list[tuple[Fault, FailureReason]] = [
    (fails(FailureReason.DIED), FailureReason.DIED),
    (fails(FailureReason.LATE), FailureReason.LATE),
    (fails(FailureReason.RAISED), FailureReason.RAISED),
    (fails(FailureReason.OOM), FailureReason.OOM),
    (changes(call_id=0), FailureReason.INVALID),
    (changes(epoch=8), FailureReason.INVALID),
    (changes(layer=0), FailureReason.INVALID),
    (Fault(lambda call, reply: reply._replace(tag=reply.tag + 1)), FailureReason.INVALID),
    (Fault(lambda call, reply: reply._replace(y_ND=reply.y_ND.astype(np.float64))), FailureReason.INVALID),
    (Fault(lambda call, reply: reply._replace(y_ND=reply.y_ND[:-1])), FailureReason.INVALID),
    (Fault(lambda call, reply: reply._replace(y_ND=reply.y_ND * math.nan)), FailureReason.INVALID),
    (Fault(lambda call, reply: reply._replace(y_ND=reply.y_ND * math.inf)), FailureReason.INVALID),
]
NAMES = ["died", "late", "raised", "oom", "call id", "epoch", "layer", "tag", "dtype", "shape", "nan", "inf"]


@pytest.mark.parametrize(("fault", "reason"), BAD_REPLIES, ids=NAMES)
def test_a_replica_answers_for_a_worker_that_fails(fault: Fault, reason: FailureReason) -> None:
    pool, world = make_pool(CONFIG, 3, 2)
    world.links[1].faults.append(fault)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert not world.links[1].faults
    assert world.rescuer.reasons == [(1, reason)]
    assert world.rescuer.losses[0][0].endpoint is world.links[1]
    assert pool.stats().workers[1].failures == {reason: 1}
    world.forget_calls()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert {rank for rank, _ in world.calls} == {0, 2}
    assert not world.rescuer.rescues


@pytest.mark.parametrize(("fault", "reason"), BAD_REPLIES, ids=NAMES)
def test_without_a_replica_the_loss_is_named_after_a_while(fault: Fault, reason: FailureReason) -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=BRIEF)
    world.links[1].faults.append(fault)
    started = time.monotonic()
    with pytest.raises(
        ExpertsLostError, match=r"layer 1: no live worker holds .*\(lost: worker 1\)"
    ) as raised:
        pool.forward(1, X_TD, ROUTING)
    assert 0.05 <= time.monotonic() - started < 5
    assert raised.value.ranks == (1,)
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    assert world.rescuer.reasons == [(1, reason)]


def keys_of(world: PoolWorld, rank: int, layer: int) -> set[ExpertKey]:
    return {key for key in world.placement.experts_of(rank) if key[0] == layer}


def test_a_rescue_is_asked_for_just_what_nobody_holds() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=BRIEF)
    world.links[1].faults.append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    routed = {(1, int(expert)) for expert in ROUTING.expert_ids_TK.flatten()}
    assert {key for asked in world.rescuer.rescues for key in asked} == keys_of(world, 1, 1) & routed


@pytest.mark.parametrize("on_loss", [OnLoss.REPLICA, OnLoss.FAIL])
def test_who_shall_not_wait_does_not(on_loss: OnLoss) -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(on_loss=on_loss, rescue_patience=60))
    world.links[1].faults.append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    assert world.rescuer.reasons == [(1, FailureReason.DIED)]
    assert not world.rescuer.rescues


@pytest.mark.parametrize(("on_loss", "fails_at_once"), [(OnLoss.FAIL, True), (OnLoss.REPLICA, False)])
def test_a_replica_is_asked_unless_any_loss_shall_fail(on_loss: OnLoss, fails_at_once: bool) -> None:
    pool, world = make_pool(CONFIG, 2, 2, options=PoolOptions(on_loss=on_loss))
    for link in world.links.values():
        link.faults.append(fails(FailureReason.DIED))
        break
    if fails_at_once:
        with pytest.raises(ExpertsLostError, match="told to be died") as raised:
            pool.forward(1, X_TD, ROUTING)
        assert raised.value.ranks == (0,)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)


def test_experts_of_live_workers_go_on_without_the_lost_ones() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=BRIEF)
    world.links[1].faults.append(fails(FailureReason.DIED))
    with pytest.raises(ExpertsLostError):
        pool.forward(1, X_TD, ROUTING)
    ids_TK = torch.full((9, 1), min(keys_of(world, 0, 1))[1])
    routing = replace(ROUTING, expert_ids_TK=ids_TK, weights_TK=torch.ones(9, 1))
    assert torch.equal(pool.forward(1, X_TD, routing), make_local(CONFIG).forward(1, X_TD, routing))


def test_workers_lost_one_after_the_other_are_survived_while_a_holder_lives() -> None:
    pool, world = make_pool(CONFIG, 3, 3)
    world.links[0].faults.append(fails(FailureReason.DIED))
    world.links[1].faults.append(fails(FailureReason.DIED))
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert {rank for rank, _ in world.rescuer.reasons} == {0, 1}


def test_the_reply_to_an_earlier_call_is_never_used() -> None:
    pool, world = make_pool(CONFIG, 2, 2)
    kept: list[ExpertReply] = []

    def keep(call: ExpertCall, reply: ExpertReply) -> ExpertReply:
        kept.append(reply)
        return reply

    world.links[0].faults.extend([Fault(keep), Fault(lambda call, reply: kept[0])])
    pool.forward(1, X_TD + 1, ROUTING)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert pool.stats().workers[0].failures == {FailureReason.INVALID: 1}


def test_rows_that_are_not_finite_cost_no_worker() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    x_TD = X_TD.clone()
    x_TD[3] = math.nan
    y_TD = pool.forward(1, x_TD, ROUTING)
    assert not world.rescuer.losses
    assert y_TD[3].isnan().all()
    others = [row for row in range(9) if row != 3]
    assert y_TD[others].isfinite().all()


def test_dispatches_that_overlap_survive_a_loss_between_them() -> None:
    pool, world = make_pool(CONFIG, 3, 2)
    begun = [pool.begin(1, X_TD, ROUTING) for _ in range(3)]
    world.links[1].faults.append(fails(FailureReason.DIED))
    begun += [pool.begin(1, X_TD, ROUTING) for _ in range(3)]
    for dispatch in begun:
        assert torch.equal(pool.finish(dispatch), EXPECTED)
    assert world.rescuer.reasons == [(1, FailureReason.DIED)]
    assert sum(pool.stats().workers[1].failures.values()) == 1


def test_a_closed_link_is_found_while_nothing_is_dispatched_and_told_of_once() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    pool.idle()
    assert not world.rescuer.losses
    world.links[0].close()
    pool.idle()
    pool.idle()
    assert world.rescuer.reasons == [(0, FailureReason.DIED)]


def with_version(layer: int, column: int, slot: int) -> tuple[Catalog, ExpertModule]:
    """The checkpoint's experts, but for one column, which stands for a later version."""
    module = ExpertModule(layer, slot, column, version=1)
    columns = [list(each) for each in Catalog.of_checkpoint(CONFIG).columns]
    columns[layer][column] = module
    return Catalog(tuple(map(tuple, columns))), module


def test_after_a_switch_columns_are_other_slots() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    catalog, module = with_version(1, 2, slot=7)
    begun = pool.begin(1, X_TD, ROUTING)
    world.links[1].worker.load(checkpoint_modules([module.key]))
    routes = world.routes()
    pool.publish(replace(routes, holders={**routes.holders, module.key: (1,)}))
    assert torch.equal(pool.finish(begun), EXPECTED)
    pool.switch(catalog)
    assert pool.missing_experts() == ()
    world.forget_calls()
    experts = make_experts(CONFIG)
    experts[1, 2] = make_expert(CONFIG, module.key)
    expected = local_experts(CONFIG, experts).forward(1, X_TD, ROUTING)
    assert torch.equal(pool.forward(1, X_TD, ROUTING), expected)
    slots = {slot for _, call in world.calls for slot, _ in call.segments}
    assert 7 in slots
    assert 2 not in slots
    assert pool.loads()[1, 7] == int((ROUTING.expert_ids_TK == 2).sum())


def test_a_column_whose_module_nobody_holds_is_lost() -> None:
    pool, _ = make_pool(CONFIG, 2, 1, options=BRIEF)
    catalog, _ = with_version(1, 2, slot=7)
    pool.switch(catalog)
    assert len(pool.missing_experts()) == 1
    with pytest.raises(ExpertsLostError, match=r"layer 1: no live worker holds expert 2$"):
        pool.forward(1, X_TD, ROUTING)


def test_what_is_published_counts_from_the_next_dispatch_on() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    old = dict(world.links)
    begun = pool.begin(1, X_TD, ROUTING)
    assert pool.adopted == 1
    world.renew(0, 1)
    pool.publish(world.routes())
    assert pool.adopted == 1
    assert torch.equal(pool.finish(begun), EXPECTED)
    assert not world.calls
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert pool.adopted == 2
    assert [len(link.calls) for link in [*old.values(), *world.links.values()]] == [1, 1, 1, 1]


def test_what_fails_on_a_link_that_was_replaced_is_no_new_loss() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    world.links[1].faults.append(fails(FailureReason.DIED))
    begun = pool.begin(1, X_TD, ROUTING)
    world.renew(1)
    pool.publish(world.routes())
    pool.idle()
    assert torch.equal(pool.finish(begun), EXPECTED)
    assert not world.rescuer.losses
    assert len(world.links[1].calls) == 1


def test_missing_experts_are_those_without_a_link_that_works() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    assert pool.missing_experts() == ()
    pool.idle()
    world.links[1].close()
    pool.idle()
    assert len(pool.missing_experts()) == len(world.placement.experts_of(1)) > 0
    world.renew(1)
    pool.publish(world.routes(0))
    assert len(pool.missing_experts()) == len(world.placement.experts_of(0))


def test_the_counters_say_what_happened() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    pool.forward(0, X_TD, ROUTING)
    pool.forward(1, X_TD, ROUTING)
    stats = pool.stats()
    assert stats.dispatches == 2
    assert stats.dispatch_seconds > 0
    assert stats.num_hedged == 0
    assert sum(worker.calls for worker in stats.workers.values()) == len(world.calls) == 4
    assert sum(worker.rows for worker in stats.workers.values()) == 36
    counts = ROUTING.expert_ids_TK.flatten().bincount(minlength=CONFIG.n_experts).tolist()
    expected = {(layer, expert): count for layer in (0, 1) for expert, count in enumerate(counts) if count}
    assert pool.loads() == stats.loads == expected


def test_close_is_idempotent() -> None:
    pool, world = make_pool(CONFIG, 2, 1)
    pool.idle()
    pool.close()
    pool.close()
    assert all(link.failure is not None for link in world.links.values())


def test_links_that_are_not_needed_any_more_are_closed_when_nothing_goes_through_them() -> None:
    pool, world = make_pool(CONFIG, 2, 1, options=PoolOptions(call_timeout=0.2))
    old = dict(world.links)
    begun = pool.begin(1, X_TD, ROUTING)
    world.renew(0)
    never_used = world.links[0]
    pool.publish(world.routes())
    world.renew(0)
    pool.publish(world.routes())
    pool.forward(1, X_TD, ROUTING)
    assert old[0].failure is None
    assert torch.equal(pool.finish(begun), EXPECTED)
    deadline = time.monotonic() + 30
    while old[0].failure is None or never_used.failure is None:
        assert time.monotonic() < deadline
        pool.forward(1, X_TD, ROUTING)
    world.renew(1)
    pool.publish(world.routes())
    pool.idle()
    assert old[1].failure is not None
    assert [link.failure for link in world.links.values()] == [None, None]
    world.renew(0, 1)
    pool.publish(world.routes())
    pool.close()
    assert None not in [link.failure for link in world.links.values()]
    assert not world.rescuer.losses


def test_a_link_that_failed_before_its_routes_were_taken_in_is_told_of() -> None:
    pool, world = make_pool(CONFIG, 2, 2)
    pool.idle()
    world.links[1].fail(FailureReason.DIED, "worker 1: its stream broke")
    world.publish()
    assert torch.equal(pool.forward(1, X_TD, ROUTING), EXPECTED)
    assert world.rescuer.reasons == [(1, FailureReason.DIED)]
    assert pool.costs().keys() == {0}
