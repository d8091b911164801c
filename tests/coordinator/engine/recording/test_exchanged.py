"""What is recorded while experts are exchanged: of each request the ids of its version, as it routes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.engine.messages.request import Request, Returns
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from tests.coordinator.engine.living import (
    CONFIG,
    LAYER,
    OLD,
    OTHER,
    Alone,
    Living,
    assert_equal,
    requests,
    submit,
)
from tests.coordinator.engine.recording.recordings import known, recorded, recorder_for
from tests.coordinator.engine.speculating import Said
from tests.models import TORCH

NATIVE = choose_kernels("native", "cpu", 1)
# An added expert's row of the router: some tokens go there.
ROW_D = 3 * torch.ones(CONFIG.d_model).cumsum(0).sin()
ALL = tuple(range(CONFIG.n_experts))


def routed(alone: Alone, request: Request, ids: Sequence[int]) -> dict[int, list[list[int]]]:
    """By position, of a model that is not exchanged and has `ids` in the exchanged layer. It calls a column
    that its config does not have absent: there is one at most."""
    found = Said.of(alone.run(replace(request, returns=Returns(routed_experts=True)))).routed
    return {
        at: [
            sorted(ids[min(column, len(ALL))] if layer == LAYER else column for column in columns)
            for layer, columns in enumerate(of_layers)
        ]
        for at, of_layers in found.items()
    }


@pytest.mark.parametrize("overlap", [None, 2], ids=["whole", "parts"])
@pytest.mark.parametrize("kernels", [TORCH, NATIVE], ids=["torch", "native"])
def test_each_version_is_recorded_with_its_own_ids(
    tmp_path: Path, kernels: Kernels, overlap: int | None
) -> None:
    recorder = recorder_for(tmp_path / "trace", CONFIG)
    living = Living(OLD, kernels, overlap=overlap, recorder=recorder)
    old, other = requests("old"), OTHER.experts[LAYER, 3]
    replaced, added, removed = requests("replaced"), requests("added"), requests("removed")
    # Each batch runs beside those before it: a step has tokens of several versions.
    submit(living, old)
    living.step(2)
    living.replace(1, other, slot=CONFIG.n_experts, layer=0)
    submit(living, replaced)
    living.step(2)
    living.add(OTHER.experts[LAYER, 2], ROW_D)
    submit(living, added)
    living.step(2)
    living.remove(0)
    submit(living, removed)
    living.drain()
    recorder.close()

    now = Alone(OLD, kernels)
    expected = {request.request_id: routed(now, request, ALL) for request in old}
    assert_equal(living, old, now)
    now = now.replace(1, other, layer=0)
    expected |= {request.request_id: routed(now, request, ALL) for request in replaced}
    now = now.add(OTHER.experts[LAYER, 2], ROW_D)
    expected |= {request.request_id: routed(now, request, (*ALL, len(ALL))) for request in added}
    now = now.remove(0)
    expected |= {request.request_id: routed(now, request, (*ALL[1:], len(ALL))) for request in removed}
    assert_equal(living, removed, now)

    names = [request.request_id for request in (*old, *replaced, *added, *removed)]
    traces = recorded(tmp_path / "trace")
    assert len(traces) == len(names)
    for number, each in traces.items():
        told = known(each)
        assert told == {at: expected[names[number]][at] for at in told}, names[number]
        # What is drawn is never in the cache.
        assert set(told) >= set(range(each.num_prompt, len(each.ids_TLK)))
    versions = [traces[number].version for number in range(len(names))]
    assert versions == sorted(versions)
    assert [versions[at] for at in range(0, len(names), len(old))] == sorted(set(versions))
    last = [traces[number].ids_TLK[traces[number].known_T][:, LAYER] for number in range(12, 16)]
    assert {0} & set(np.unique(np.concatenate(last))) == set()
    assert len(ALL) in np.concatenate(last)
