"""Loads that are simulated: nothing is lost, and closed forms are met."""

import random
from dataclasses import replace

import pytest

from coordinator.config.engine import EngineConfig
from expert_workers.dispatch.options import PoolOptions
from moe_model.errors import ConfigError
from scaling.cell import Fault
from scaling.link import Link
from scaling.shape import shape_of_config
from scaling.simulation.messages import Messages
from scaling.simulation.outcome import Outcome
from scaling.simulation.setting import Ask, Demand, Setting
from scaling.simulation.world import World, simulate
from tests.scaling.simulation.settings import CONFIG, Plain, demand, setting

COSTS = Plain(
    of_step=1e-4, shared=2e-4, of_head=1e-4, of_experts=3e-4, per_row=1e-5, of_call=1e-5, of_answer=2e-5
)
LINK = Link(gbit=1.0, delay_ms=0.2)


def whole(outcome: Outcome, num: int, output: int = 6) -> None:
    assert (outcome.num_requests, outcome.num_failed) == (num, 0)
    assert outcome.num_tokens == num * output


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_request_gets_all_of_its_tokens(workers: int) -> None:
    whole(simulate(setting(COSTS, workers, LINK), demand(7, 3)), 7)


@pytest.mark.parametrize("is_plain", [True, False])
def test_every_row_is_computed_once(is_plain: bool) -> None:
    world = World(setting(COSTS, 3, LINK), demand(5, 2), is_plain=is_plain)
    outcome = world.run()
    steps = world.engines[0].counts.steps
    assert outcome.num_pairs == sum(step.num_tokens for step in steps) * CONFIG.n_layers * CONFIG.top_k
    # The last token of each request is drawn and not run.
    assert sum(step.num_tokens for step in steps) == 5 * (8 + 6 - 1)
    world.engines[0].scheduler.check_integrity()


def test_the_quick_way_gives_what_the_long_way_gives() -> None:
    for link in (LINK, Link(gbit=0.01, delay_ms=3)):
        for parts in (1, 2):
            made = setting(COSTS, 3, link, engine=EngineConfig(micro_batches=parts, max_gap_ms=None))
            quick = World(made, demand(9, 6), is_plain=True).run()
            long = World(made, demand(9, 6), is_plain=False).run()
            assert quick.tokens_per_s == pytest.approx(long.tokens_per_s, rel=0.01), (link, parts)
            assert quick.bytes_sent == pytest.approx(long.bytes_sent)
            assert quick.split_ms == pytest.approx(long.split_ms, rel=0.05)


def test_answers_that_came_meanwhile_are_taken_in_as_long() -> None:
    """Two parts in flight, and calls that take the coordinator as long as its own part."""
    costs = replace(COSTS, of_call=2 * COSTS.shared)
    made = setting(costs, 3, LINK, engine=EngineConfig(micro_batches=2, max_gap_ms=None))
    quick, long = (World(made, demand(9, 6), is_plain=is_plain).run() for is_plain in (True, False))
    assert quick.tokens_per_s == pytest.approx(long.tokens_per_s, rel=0.05)


def test_copies_are_chosen_as_the_product_chooses() -> None:
    made = setting(COSTS, 3)
    assert made.is_plain
    assert not replace(made, replicas=2).is_plain
    assert not replace(made, holders={(0, 0): (0, 1)}).is_plain


def test_rows_of_native_kernels_are_float32_whatever_the_model() -> None:
    of = [
        Messages.of(shape_of_config(CONFIG, "m"), dtype, wire, "exact", kernels).value_bytes
        for dtype, wire, kernels in (
            ("bfloat16", "float32", "auto"),
            ("bfloat16", "bfloat16", "auto"),
            ("bfloat16", "float32", "torch"),
            ("float32", "bfloat16", "torch"),
        )
    ]
    assert of == [4, 2, 2, 2]


def test_without_a_network_one_worker_is_the_coordinator_itself() -> None:
    """An infinite network, no time for calls: the sum of the parts."""
    costs = replace(COSTS, of_call=0.0, of_answer=0.0)
    here = simulate(setting(costs, 0), demand(4, 2))
    there = simulate(setting(costs, 1, Link(gbit=1e9)), demand(4, 2))
    assert there.tokens_per_s == pytest.approx(here.tokens_per_s, rel=1e-6)


def test_without_work_a_step_is_two_delays_a_layer() -> None:
    found = simulate(setting(Plain(), 2, Link(gbit=1e9, delay_ms=5)), demand(1, 1))
    assert found.gap_ms is not None
    assert found.gap_ms.median == pytest.approx(2 * 5 * CONFIG.n_layers, rel=1e-6)
    assert found.binds == "delay"


def test_a_message_takes_its_bytes_over_the_bandwidth() -> None:
    """One row of two experts on one worker: a float32 row and its sum, headers, segments and weights."""
    out, back = 64 + 4 * 32 + 2 * 8 + 4 * 2 + 4 * 2, 64 + 4 * 32
    found = simulate(setting(Plain(), 1, Link(gbit=1e-3)), demand(1, 1, prompt=1))
    assert found.gap_ms is not None
    assert found.gap_ms.median == pytest.approx(1e3 * CONFIG.n_layers * (out + back) * 8 / 1e6, rel=1e-3)


def test_a_worker_that_two_coordinators_share_is_a_queue() -> None:
    """Constant service: with two customers and nothing else to do, each waits for the other."""
    costs = Plain(of_experts=1e-3)
    alone = simulate(setting(costs, 1, Link(gbit=1e9)), demand(2, 1))
    shared = simulate(setting(costs, 1, Link(gbit=1e9), coordinators=2), demand(2, 2))
    assert alone.gap_ms is not None
    assert shared.gap_ms is not None
    assert alone.gap_ms.median == pytest.approx(2.0, rel=1e-6)
    assert shared.gap_ms.median == pytest.approx(4.0, rel=1e-6)
    # As many tokens of both together: the worker is busy all the time.
    assert shared.tokens_per_s == pytest.approx(alone.tokens_per_s, rel=0.15)


def test_requests_of_one_moment_come_one_after_the_other() -> None:
    """The engine begins with the first, and has the others beside its token in the second step."""
    world = World(setting(replace(COSTS, of_front=1e-4)), demand(4, 4))
    whole(world.run(), 4)
    assert [step.num_tokens for step in world.engines[0].counts.steps[:2]] == [8, 3 * 8 + 1]


def test_an_open_loop_is_an_m_d_1_queue() -> None:
    """One token a request, steps of 1 ms for one sequence at a time: the mean wait is ρ / (2 μ (1 - ρ))
    (Pollaczek and Khinchine); here ρ is 0.5, so requests are there for 1.5 ms on the average."""
    made = setting(Plain(of_step=1e-3), engine=EngineConfig(max_num_seqs=1, max_gap_ms=None, micro_batches=1))
    rng, at, asks = random.Random(3), 0.0, []
    for _ in range(4000):
        at += rng.expovariate(500.0)
        asks.append(Ask(at, 2, 1, (1, 2)))
    found = simulate(made, Demand(asks))
    assert found.first_token_ms is not None
    assert found.first_token_ms.mean == pytest.approx(1.5, rel=0.1)


def faulty(fault: Fault, replicas: int, **options: float) -> Setting:
    pool = PoolOptions(rescue_patience=0.05, **options)  # type: ignore[arg-type]
    return setting(COSTS, 3, LINK, faults=(fault,), replicas=replicas, pool=pool, restart_s=0.5)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("kind", ["kill", "pause", "slow", "cut"])
def test_nothing_is_lost_when_a_worker_fails(kind: str, replicas: int) -> None:
    fault = Fault(kind=kind, at_s=0.02, worker=1, seconds=0.3)  # type: ignore[arg-type]
    whole(simulate(faulty(fault, replicas), demand(12, 4, output=20)), 12, 20)


def test_a_replica_takes_over_at_once_and_reloading_takes_its_time() -> None:
    """24 kB of an expert's weights at 1 MB/s take less than a restart, and more than a step."""
    fault = Fault(kind="kill", at_s=0.02, worker=1)
    alone, copied = (simulate(faulty(fault, n), demand(12, 4, output=20)) for n in (1, 2))
    assert copied.max_gap_ms < alone.max_gap_ms
    assert copied.num_retried == 0
    assert alone.max_gap_ms < 500


def test_a_slow_worker_is_hedged() -> None:
    fault = Fault(kind="pause", at_s=0.2, worker=1, seconds=1.0)
    asked = faulty(fault, 2, hedge_floor=0.002)
    found = simulate(asked, demand(40, 4, output=20))
    assert found.num_hedged > 0
    assert found.max_gap_ms < 100


def test_requests_fail_when_patience_ends() -> None:
    fault = Fault(kind="kill", at_s=0.01, worker=0)
    made = setting(
        COSTS,
        1,
        LINK,
        faults=(fault,),
        pool=PoolOptions(wait_timeout=0.3, rescue_patience=0.1),
        restart_s=60.0,
    )
    found = simulate(made, demand(2, 2, output=40))
    assert found.num_failed == 2
    assert found.num_tokens < 80


def test_equal_seeds_give_equal_outcomes() -> None:
    lossy = Link(gbit=0.1, delay_ms=0.2, loss_percent=2)
    one, other, third = (simulate(setting(COSTS, 3, lossy, seed=s), demand(8, 4)) for s in (1, 1, 2))
    assert one == other
    assert one != third


def test_losses_cost_time() -> None:
    clean, lossy = (
        simulate(setting(COSTS, 2, Link(gbit=0.1, delay_ms=0.2, loss_percent=p)), demand(8, 4))
        for p in (0, 3)
    )
    assert lossy.tokens_per_s < clean.tokens_per_s


def test_a_load_that_never_ends_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"has not ended after 0\.001 simulated seconds"):
        World(setting(COSTS, 1, LINK), demand(8, 4)).run(until=1e-3)
