"""Forced experts: the law, the same choice wherever a token is computed, and weights of the router's own."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from coordinator.config.routing import ForcedRouting
from coordinator.engine.core.forcing import Forcing
from coordinator.engine.messages.request import Request, Returns
from coordinator.engine.recording.trace_reader import Recorded
from coordinator.server.routing import forcing_of
from moe_model.errors import ConfigError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.zipf_choice import zipf_inclusion
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.recording.recordings import known, recorded, recorder_for
from tests.coordinator.engine.speculating import Said, Sizes, engine_with
from tests.models import TINY, TORCH, Collected, drain, make_request

CONFIG = replace(TINY, max_seq_len=256, n_experts=8, top_k=2)
NATIVE = choose_kernels("native", "cpu", 1)
ZIPF = ForcedRouting(1.2, 3)
PROMPT = tuple(range(3, 14))
PLAIN = Sizes()


def forcing(force: ForcedRouting, first_key: int = 0) -> Forcing:
    found = forcing_of(force, CONFIG, first_key)
    assert found is not None
    return found


def requests() -> list[Request]:
    asked = [
        make_request("a", PROMPT, 9),
        make_request("b", (*PROMPT[:9], 1), 6, SamplingParams(1.1, seed=2)),
        make_request("c", (7, 8, 9) * 4, 12),
    ]
    return [replace(each, returns=Returns(routed_experts=True)) for each in asked]


def run(
    forced: Forcing, kernels: Kernels = NATIVE, sizes: Sizes = PLAIN, most: int | None = None
) -> dict[str, Collected]:
    engine = engine_with(most, CONFIG, kernels, sizes, forcing=forced)
    for request in requests():
        engine.submit(request)
    return drain(engine)


def said(found: dict[str, Collected]) -> dict[str, tuple[list[int], dict[int, list[list[int]]]]]:
    of_all = {}
    for name, each in found.items():
        routed = {at: np.sort(ids).tolist() for at, ids in Said.of(each).routed.items()}
        of_all[name] = each.token_ids, routed
    return of_all


@pytest.mark.parametrize("force", [ZIPF, replace(ZIPF, is_masked=True)], ids=str)
def test_a_token_goes_the_same_way_wherever_it_is_computed(force: ForcedRouting) -> None:
    expected = said(run(forcing(force)))
    assert said(run(forcing(force), TORCH)) == expected
    for sizes in (Sizes(max_step_tokens=4), Sizes(num_blocks=64, fails=True), Sizes(num_parts=2)):
        assert said(run(forcing(force), NATIVE, sizes)) == expected
    assert said(run(forcing(force), NATIVE, most=4)) == expected
    assert said(run(forcing(replace(force, seed=4)))) != expected


def recorded_run(folder: Path, force: ForcedRouting) -> list[tuple[list[int], Recorded]]:
    """Of 24 requests of chance: the tokens that were routed, and what was recorded of them."""
    recorder = recorder_for(folder / "trace", CONFIG)
    sizes = Sizes(num_blocks=400, max_step_tokens=256)
    engine = engine_with(None, CONFIG, NATIVE, sizes, recorder=recorder, forcing=forcing(force))
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 50, 200).tolist()) for _ in range(24)]
    for number, prompt in enumerate(prompts):
        engine.submit(make_request(str(number), prompt, 4))
    found = drain(engine)
    recorder.close()
    traces = recorded(folder / "trace")
    return [
        ([*prompt, *found[str(number)].token_ids][:-1], traces[number])
        for number, prompt in enumerate(prompts)
    ]


def test_a_recorded_run_has_the_shares_of_the_law(tmp_path: Path) -> None:
    rows = np.concatenate([each.ids_TLK[each.known_T] for _, each in recorded_run(tmp_path, ZIPF)])
    for layer in range(2):
        shares_E = np.bincount(rows[:, layer].ravel(), minlength=8) / rows[:, layer].size
        expected_E = zipf_inclusion(8, 2, 1.2, layer, 3) / 2
        assert shares_E == pytest.approx(expected_E, abs=0.015)
        assert (rows[:, layer, 0] != rows[:, layer, 1]).all()


def test_masked_routers_choose_among_twice_as_many() -> None:
    table = forcing(replace(ZIPF, is_masked=True))._table  # type: ignore[attr-defined]
    assert table.ids_LPC.shape == (2, 4096, 4)
    assert table.top_k == 2
    # They do choose: otherwise tokens of two models would go the same way.
    found = said(run(forcing(replace(ZIPF, is_masked=True))))
    assert found != said(run(forcing(ZIPF)))


def test_masked_routers_choose_among_candidates_that_have_the_shares_of_the_law(tmp_path: Path) -> None:
    masked = replace(ZIPF, is_masked=True)
    found, forced = recorded_run(tmp_path, masked), forcing(masked)
    for layer in range(2):
        allowed, chosen = [], []
        for token_ids, each in found:
            batch = _Batch(torch.arange(len(token_ids)), torch.tensor(token_ids))
            allowed.append(forced.rows(batch).selection(layer).allowed_TE.numpy())  # type: ignore[arg-type]
            ids_TK = each.ids_TLK[:, layer].astype(int)
            assert np.take_along_axis(allowed[-1][each.known_T], ids_TK[each.known_T], axis=1).all()
            chosen.append(ids_TK[each.known_T])
        # Four of eight experts are candidates of a token, each as often as the law has it.
        shares_E, chance_E = np.concatenate(allowed).mean(0), zipf_inclusion(8, 4, 1.2, layer, 3)
        assert shares_E == pytest.approx(chance_E, abs=0.02)
        # And two of them get its rows, by their router's choice: none more than it was a candidate.
        rows_E = np.bincount(np.concatenate(chosen).ravel(), minlength=8) / len(np.concatenate(chosen))
        assert (rows_E <= chance_E + 0.02).all()
        assert (rows_E[chance_E < 0.4] > 0).any(), "not the most frequent ones alone"


def test_a_trace_is_replayed_by_sequence_and_position_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    recorder = recorder_for(path, CONFIG)
    engine = engine_with(None, CONFIG, NATIVE, recorder=recorder, forcing=forcing(ZIPF))
    for request in requests():
        engine.submit(request)
    expected = said(drain(engine))
    recorder.close()
    replay = forcing(ForcedRouting(path=str(path)))
    assert said(run(replay)) == expected
    assert said(run(replay, TORCH)) == expected
    engine = engine_with(None, CONFIG, NATIVE, forcing=replay)
    again = [replace(each, request_id=f"again {each.request_id}") for each in requests()]
    for request in [*requests(), *again]:
        engine.submit(request)
    found = said(drain(engine))
    assert found["again b"][1] == found["b"][1] == expected["b"][1]
    # Longer than what was recorded: positions begin anew.
    engine = engine_with(None, CONFIG, NATIVE, forcing=replay)
    engine.submit(replace(make_request("a", PROMPT, 40), returns=Returns(routed_experts=True)))
    longer = said(drain(engine))["a"][1]
    length = len(expected["a"][1])
    assert all(longer[at] == longer[at % length] for at in longer)
    assert len(longer) > 2 * length
    assert known(recorded(path)[0]) == expected["a"][1]


def test_a_trace_of_another_model_is_refused(tmp_path: Path) -> None:
    recorder = recorder_for(tmp_path / "trace", replace(CONFIG, n_experts=4))
    recorder.close()
    with pytest.raises(ConfigError, match="2 layers with 2 of 4 experts, the model has 2 with 2 of 8"):
        forcing(ForcedRouting(path=str(tmp_path / "trace")))
    recorder = recorder_for(tmp_path / "empty", CONFIG)
    recorder.close()
    with pytest.raises(ConfigError, match="has no rows"):
        forcing(ForcedRouting(path=str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match="No such file"):
        forcing(ForcedRouting(path=str(tmp_path / "nothing")))


def test_weights_are_the_routers_own_among_those_that_are_forced() -> None:
    batch = _Batch(torch.tensor([0, 1, 2]), torch.tensor([5, 5, 5]))
    selection = forcing(ZIPF).rows(batch).selection(1)  # type: ignore[arg-type]
    assert selection.allowed_TE.sum(1).tolist() == [2, 2, 2]
    assert selection.top_k_T.tolist() == [2, 2, 2]


class _Batch(NamedTuple):
    positions_T: torch.Tensor
    token_ids_T: torch.Tensor
