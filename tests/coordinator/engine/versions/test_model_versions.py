"""The law of living experts: a request that began before an exchange equals the old model alone, one that
came after it the new model alone, token for token, whatever runs beside it; and what is not used goes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coordinator.engine.messages.errors import UnknownExpertError
from coordinator.engine.messages.output import RoutedExperts
from coordinator.engine.messages.records import StepRecord, TracedRequest
from coordinator.engine.messages.request import Returns
from moe_model.errors import WorkerStartError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.versions.expert_versions import Catalog, ExpertModule
from tests.coordinator.engine.living import (
    COMMON,
    CONFIG,
    GATE,
    LAYER,
    LONG,
    OLD,
    OTHER,
    Alone,
    Living,
    assert_equal,
    requests,
    submit,
)
from tests.models import Collected, make_request
from tests.native import KERNELS


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    choice: KernelChoice = request.param
    return choose_kernels(choice, "cpu", 1)


SIZES = [{}, {"step": 5}, {"num_blocks": 12, "step": 9}]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_each_request_is_answered_by_the_model_it_began_with(
    kernels: Kernels, sizes: dict[str, Any], num_steps: int
) -> None:
    living = Living(OLD, kernels, **sizes)
    before, between, after = requests("before"), requests("between"), requests("after")
    submit(living, before)
    living.step(num_steps)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    submit(living, between)
    living.step(2)
    assert living.num_live == 2
    living.replace(0, OTHER.experts[0, 1], slot=4, layer=0)
    submit(living, after)
    living.step(1)
    assert living.num_live == 3
    living.drain()
    assert_equal(living, before, Alone(OLD, kernels))
    assert_equal(living, between, Alone(OLD, kernels).replace(2, OTHER.experts[LAYER, 0]))
    new = Alone(OLD, kernels).replace(2, OTHER.experts[LAYER, 0]).replace(0, OTHER.experts[0, 1], 0)
    assert_equal(living, after, new)
    assert Alone(OLD, kernels).tokens(before[1]) != new.tokens(before[1]), "the exchange shows"
    if "num_blocks" in sizes:
        assert living.engine.stats().num_preemptions > 0


def test_experts_come_and_go(kernels: Kernels) -> None:
    living, alone = Living(OLD, kernels), Alone(OLD, kernels)
    tensors, row_D = OTHER.experts[LAYER, 3], 3 * OTHER.shared[GATE][1]
    groups = [requests(name) for name in ("first", "added", "removed", "both")]
    submit(living, groups[0])
    living.step(2)
    living.add(tensors, row_D)
    submit(living, groups[1])
    living.step(2)
    living.remove(1)
    submit(living, groups[2])
    living.step(2)
    living.add(OTHER.experts[LAYER, 1], -row_D)
    assert living.versions.newest.experts == ((0, 1, 2, 3), (0, 2, 3, 4, 5))
    submit(living, groups[3])
    living.step(1)
    assert living.num_live == 4
    living.drain()
    assert_equal(living, groups[0], alone)
    assert_equal(living, groups[1], alone.add(tensors, row_D))
    assert_equal(living, groups[2], alone.remove(1))
    assert_equal(living, groups[3], alone.add(OTHER.experts[LAYER, 1], -row_D))


def test_what_nobody_uses_any_more_goes(kernels: Kernels) -> None:
    living = Living(OLD, kernels)
    everything = living.experts.keys
    submit(living, requests("old", 2))
    living.step(1)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    assert living.experts.keys == everything | {(LAYER, 4)}
    assert [m.slot for m in living.versions.catalog.columns[LAYER]] == [0, 1, 2, 4, 3]
    submit(living, requests("new", 2))
    for name in ("old0", "old1"):
        living.engine.abort(name)
    living.step(1)
    assert living.num_live == 1
    assert living.experts.keys == everything - {(LAYER, 2)} | {(LAYER, 4)}
    assert [m.slot for m in living.versions.catalog.columns[LAYER]] == [0, 1, 4, 3]
    living.drain()
    assert_equal(living, requests("new", 2), Alone(OLD, kernels).replace(2, OTHER.experts[LAYER, 0]))


def test_without_requests_the_old_goes_at_once(kernels: Kernels) -> None:
    living = Living(OLD, kernels)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    assert living.num_live == 1
    assert (LAYER, 2) not in living.experts.keys
    assert living.versions.route([]) == living.versions.newest.route, "nothing is selected"


def test_a_generation_in_the_middle_goes_before_an_older_one(kernels: Kernels) -> None:
    living = Living(OLD, kernels)
    submit(living, requests("old", 2))
    living.step(1)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    living.replace(2, OTHER.experts[LAYER, 1], slot=5)
    assert [g.number for g in living.versions.live] == [0, 2]
    assert (LAYER, 4) not in living.experts.keys
    living.drain()
    assert_equal(living, requests("old", 2), Alone(OLD, kernels))


def test_a_waiting_request_keeps_its_generation() -> None:
    living = Living(OLD, choose_kernels("torch", "cpu"))
    before = requests("before")
    submit(living, before)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    assert living.num_live == 2
    living.drain()
    assert_equal(living, before, Alone(OLD, living.kernels))


def test_steps_say_which_experts_each_traced_request_uses() -> None:
    living = Living(OLD, choose_kernels("torch", "cpu"))
    seen: list[StepRecord] = []
    # Of an observer the engine needs no more than this.
    living.engine._observer = SimpleNamespace(step=seen.append)
    submit(living, [replace(make_request("old", COMMON, 4), trace=1), make_request("untraced", COMMON, 4)])
    living.step(1)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    submit(living, [replace(make_request("new", COMMON, 4), trace=2)])
    living.drain()
    assert seen[0].traces == (TracedRequest(1),)
    found = {traced for record in seen[1:] for traced in record.traces}
    assert found == {TracedRequest(1), TracedRequest(2, 1, (f"{LAYER}/2:5",))}


def test_versions_share_no_cached_prompts(kernels: Kernels) -> None:
    living = Living(OLD, kernels)
    submit(living, [make_request("old", LONG, 2), make_request("old-too", LONG, 8)])
    living.step(3)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    submit(living, [make_request("new", LONG, 5)])
    living.step(1)
    submit(living, [make_request("new-too", LONG, 5)])
    living.drain()
    assert [cached(living.results[name]) for name in ("old", "new", "new-too")] == [0, 0, 12]
    new = Alone(OLD, kernels).replace(2, OTHER.experts[LAYER, 0])
    assert_equal(living, [make_request("new", LONG, 5), make_request("new-too", LONG, 5)], new)


def cached(result: Collected) -> int:
    return sum(o.prompt.num_cached for o in result.outputs if o.prompt is not None)


@pytest.mark.parametrize(
    "selection",
    [ExpertSelection((1, 2)), ExpertSelection((2,)), ExpertSelection(None, 1), ExpertSelection((0, 2, 3), 3)],
)
def test_selections_are_by_expert_whatever_its_version(kernels: Kernels, selection: ExpertSelection) -> None:
    living = Living(OLD, kernels)
    before = [replace(r, experts=selection) for r in requests("before", 2)] + requests("plain", 2)
    after = [replace(r, experts=selection) for r in requests("after", 2)] + requests("plain-too", 2)
    submit(living, before)
    living.step(3)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    submit(living, after)
    living.drain()
    assert_equal(living, before, Alone(OLD, kernels))
    assert_equal(living, after, Alone(OLD, kernels).replace(2, OTHER.experts[LAYER, 0]))


def test_a_selection_of_what_is_gone_is_refused() -> None:
    living = Living(OLD, choose_kernels("torch", "cpu"))
    living.remove(1)
    only = replace(make_request("only"), experts=ExpertSelection((1,)))
    with pytest.raises(UnknownExpertError, match="layer 1"):
        living.engine.submit(only)
    both = replace(make_request("both"), experts=ExpertSelection((1, 2)))
    living.engine.submit(both)
    assert len(living.drain()["both"].token_ids) == 4


def traced(result: Collected) -> list[RoutedExperts]:
    prompts = [t for o in result.outputs if o.prompt is not None for t in o.prompt.routed_experts]
    return prompts + [t for o in result.outputs for t in o.routed_experts]


def test_traces_show_expert_ids(kernels: Kernels) -> None:
    living = Living(OLD, kernels)
    returns = Returns(routed_experts=True)
    old = replace(make_request("old", COMMON, 8), returns=returns)
    submit(living, [old])
    living.step(2)
    living.replace(2, OLD.experts[LAYER, 2], slot=4)
    new = replace(make_request("new", COMMON, 8), returns=returns)
    submit(living, [new])
    living.step(2)
    living.remove(0)
    submit(living, [replace(new, request_id="less", experts=ExpertSelection((0, 2), None))])
    results = living.drain()
    assert living.num_live == 1
    first = np.concatenate([t.ids_TLK for t in traced(results["old"])])
    assert first.shape == (len(COMMON) + 7, CONFIG.n_layers, CONFIG.top_k)
    assert first.max() == 3
    second = np.concatenate([t.ids_TLK for t in traced(results["new"])])
    assert (first == second).all(), "the same weights under another version"
    third = np.concatenate([t.ids_TLK for t in traced(results["less"])])
    assert set(third[:, 0].flatten()) == {0, 2}
    assert set(third[:, 1, 0]) == {2}
    assert set(third[:, 1, 1]) == {255}, "an absent one"


def test_a_switch_that_fails_changes_nothing(kernels: Kernels) -> None:
    living = Living(OLD, kernels)
    submit(living, requests("r"))
    living.step(1)
    routed = living.versions.newest.layers[LAYER]
    unknown = ExpertModule(LAYER, 77, 1, 1)
    with pytest.raises(KeyError):
        living.change([*routed.modules[:1], unknown, *routed.modules[2:]], routed.router_weights)
    assert living.num_live == 1
    living.drain()
    assert_equal(living, requests("r"), Alone(OLD, kernels))


def test_a_backend_that_cannot_let_go_is_asked_again_when_more_has_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    living = Living(OLD, choose_kernels("torch", "cpu"))
    submit(living, requests("old", 3))
    living.step(1)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    switch, calls = living.experts.switch, []

    def failing(catalog: Catalog) -> None:
        calls.append(catalog)
        if len(calls) == 1:
            raise WorkerStartError("not now")
        switch(catalog)

    living.experts.switch = failing  # type: ignore[method-assign]
    living.drain()
    living.engine.idle()
    living.engine.idle()
    assert len(calls) == 1
    assert living.num_live == 2
    assert "not now" in caplog.text
    living.engine.submit(make_request("another"))
    living.drain()
    living.engine.idle()
    assert living.num_live == 1


def test_steps_cut_in_two_are_routed_alike() -> None:
    living = Living(OLD, choose_kernels("torch", "cpu"), overlap=2)
    before, after = requests("before"), requests("after")
    submit(living, before)
    living.step(3)
    living.replace(2, OTHER.experts[LAYER, 0], slot=4)
    submit(living, after)
    living.drain()
    assert_equal(living, before, Alone(OLD, living.kernels))
    assert_equal(living, after, Alone(OLD, living.kernels).replace(2, OTHER.experts[LAYER, 0]))
