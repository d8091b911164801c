"""What is recorded is what the layers did: once for each token, whatever the engine had to do for it.

Against what requests of the same kind are told that ask for their routing, and against the bare model.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.engine.core.engine import Engine
from coordinator.engine.messages.request import Request, Returns
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.router import Routing
from moe_model.sampling.params import SamplingParams
from tests.coordinator.engine.recording.recordings import known, recorded, recorder_for
from tests.coordinator.engine.speculating import Counted, Said, Sizes, engine_with
from tests.models import TINY, TORCH, Collected, drain, make_request, random_reference

CONFIG = replace(TINY, max_seq_len=48)
REFERENCE = random_reference(CONFIG)
NATIVE = choose_kernels("native", "cpu", 1)
PROMPT = tuple(range(3, 14))
# As if prompts were long, the cache short, answers lost, workers far away.
ALL_SIZES = [
    Sizes(),
    Sizes(max_step_tokens=4),
    Sizes(num_blocks=9, max_step_tokens=5),
    Sizes(fails=True),
    Sizes(num_parts=2),
    Sizes(num_blocks=9, max_step_tokens=5, num_parts=2, fails=True),
]


# By the number of the sequence.
NAMES = ("a", "b", "b#1", "b#2", "c", "d", "e")


def truth(token_ids: Sequence[int]) -> list[list[list[int]]]:
    """[token][layer][k], of the bare model; K in the order of ids."""
    layers: list[torch.Tensor] = []

    def observe(_layer: int, routing: Routing) -> None:
        layers.append(routing.expert_ids_TK)

    REFERENCE._hidden(torch.tensor([list(token_ids)]), observe=observe)
    ids: list[list[list[int]]] = torch.stack(layers, dim=1).sort(-1).values.tolist()
    return ids


def run(path: Path, engine: Engine, requests: Sequence[Request]) -> dict[str, Collected]:
    for request in requests:
        engine.submit(request)
    found = drain(engine)
    engine.check_integrity()
    recorder = engine._recorder
    assert recorder is not None
    recorder.close()  # type: ignore[attr-defined]
    return found


def requests() -> list[Request]:
    """Prompts that have a beginning in common, several sequences, one that wants its routing."""
    return [
        make_request("a", PROMPT, 9),
        replace(make_request("b", (*PROMPT[:9], 1), 6, SamplingParams(1.1, seed=2)), num_sequences=3),
        replace(make_request("c", (7, 8, 9) * 4, 12), returns=Returns(routed_experts=True)),
        make_request("d", (*PROMPT, 4, 5), 3),
        make_request("e", PROMPT, 2),
    ]


@pytest.mark.parametrize("kernels", [TORCH, NATIVE], ids=["torch", "native"])
@pytest.mark.parametrize("most", [None, 4], ids=["plain", "drafts"])
@pytest.mark.parametrize("sizes", ALL_SIZES, ids=str)
def test_each_token_is_recorded_as_it_was_routed(
    tmp_path: Path, sizes: Sizes, most: int | None, kernels: Kernels
) -> None:
    counted = Counted()
    recorder = recorder_for(tmp_path / "trace", CONFIG)
    engine = engine_with(most, CONFIG, kernels, sizes, counted, recorder)
    found = run(tmp_path / "trace", engine, requests())
    traces = recorded(tmp_path / "trace")
    assert len(traces) == 7
    if sizes.num_blocks == 9:
        assert engine.stats().num_preemptions > 0
    if most is not None and not sizes.fails:
        assert counted.num_drafted > counted.num_accepted > 0, "some drafts were right, and some were not"
    num_cached = 0
    for number, each in traces.items():
        name, request = NAMES[number], {r.request_id: r for r in requests()}[NAMES[number][0]]
        assert each.index == int(name[2:] or 0)
        assert each.is_whole
        assert each.num_prompt == len(request.prompt_ids)
        token_ids = [*request.prompt_ids, *found[name].token_ids]
        expected = truth(token_ids)[:-1]
        assert len(each.ids_TLK) == len(token_ids) - 1
        told = known(each)
        assert told == {at: expected[at] for at in told}
        num_cached += len(expected) - len(told)
        # What is drawn is never in the cache: each was routed here, and once.
        assert set(told) >= set(range(len(request.prompt_ids), len(expected)))
    said = Said.of(found["c"]).routed
    assert {at: np.sort(ids).tolist() for at, ids in said.items()} == known(traces[4])
    assert len(known(traces[4])) == 12 + 12 - 1
    assert num_cached > 0, "prompts have something in common"


def test_what_is_cached_is_said_to_be_unknown(tmp_path: Path) -> None:
    recorder = recorder_for(tmp_path / "trace", CONFIG)
    engine = engine_with(None, CONFIG, NATIVE, recorder=recorder)
    engine.submit(make_request("first", PROMPT, 2))
    drain(engine)
    run(tmp_path / "trace", engine, [make_request("again", PROMPT, 2)])
    traces = recorded(tmp_path / "trace")
    assert traces[0].known_T.all()
    # Two blocks of four: a third is not full when the last token has to be computed.
    assert traces[1].known_T.tolist() == [False] * 8 + [True] * 4
    assert (traces[1].ids_TLK[:8] == 0xFFFF).all()


def test_a_context_that_slides_is_recorded_once(tmp_path: Path) -> None:
    recorder = recorder_for(tmp_path / "trace", CONFIG)
    engine = engine_with(None, replace(CONFIG, max_seq_len=12), NATIVE, recorder=recorder)
    run(tmp_path / "trace", engine, [make_request("r", PROMPT, 20)])
    (each,) = recorded(tmp_path / "trace").values()
    assert each.known_T.all()
    assert len(each.ids_TLK) == len(PROMPT) + 20 - 1


def test_without_a_recorder_a_step_is_as_it_was(tmp_path: Path) -> None:
    plain = drain_all(engine_with(None, CONFIG, NATIVE))
    recorder = recorder_for(tmp_path / "trace", CONFIG)
    assert drain_all(engine_with(None, CONFIG, NATIVE, recorder=recorder)) == plain
    recorder.close()


def drain_all(engine: Engine) -> dict[str, list[int]]:
    for request in requests():
        engine.submit(request)
    return {name: each.token_ids for name, each in drain(engine).items()}
