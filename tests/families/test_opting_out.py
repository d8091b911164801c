"""FlexOlmo's story: experts that were trained apart, of which some are left out when the model answers.

OLMoE has the same router, and no norm after its experts that would hide what their weights add up to.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coordinator.config.workers import WorkersConfig
from coordinator.engine.messages.request import Request, Returns, StopRules
from coordinator.server.build_engine import build_engine
from coordinator.server.experts import open_experts
from moe_model.checkpoint.reader import Checkpoint
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.sampling.params import SamplingParams
from tests.families.case import say
from tests.families.cases import CASES
from tests.families.ours import CONFIG, PROMPTS
from tests.families.rows import run

NUM_TOKENS = 32


def without(tensors: Mapping[str, Tensor], expert: int) -> dict[str, Tensor]:
    """Those of a model whose routers have no row for the expert, and no such expert."""

    def less(name: str, tensor: Tensor) -> Tensor:
        if ".experts." not in name and not name.endswith("gate.weight"):
            return tensor
        return torch.cat([tensor[:expert], tensor[expert + 1 :]])

    return {name: less(name, tensor) for name, tensor in tensors.items()}


def smaller_model(model: Any, expert: int) -> Any:
    """transformers' own, with the expert's row of each router removed."""
    less = type(model)(type(model.config)(**model.config.to_dict() | {"num_experts": 6})).eval()
    less.config._attn_implementation = "eager"
    less.set_experts_implementation("eager")
    less.load_state_dict(without(model.state_dict(), expert))
    return less


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("variant", ["", "weights add up"])
@pytest.mark.parametrize("name", ["flex_olmo", "olmoe"])
def test_a_denied_expert_is_as_one_that_is_not_there(
    name: str, variant: str, num_workers: int, tmp_path: Path
) -> None:
    case = CASES[name]
    model = case.make_model(variant)
    checkpoint = Checkpoint.open(case.write(model, tmp_path))
    workers = WorkersConfig(num_workers=num_workers, transport="in-process")
    selections = {f"without-{expert}": expert for expert in (0, 2, 6)}
    with open_experts(checkpoint, CONFIG, workers) as experts:
        engine = build_engine(checkpoint, CONFIG, experts)
        found = run(engine, [denying(name, expert) for name, expert in selections.items()])
    for expert, each in zip(selections.values(), found, strict=True):
        said = say(smaller_model(model, expert), [*PROMPTS[1], *each.token_ids[:-1]])
        after_SV = said.logits_SV[len(PROMPTS[1]) - 1 :]
        assert each.token_ids == after_SV.argmax(-1).tolist()
        expected = after_SV.log_softmax(-1)[range(NUM_TOKENS), each.token_ids]
        logprobs = [one.logprob for output in each.outputs for one in output.logprobs]
        assert np.abs(np.array(logprobs) - expected.numpy()).max() < 1e-3
    assert len({tuple(each.token_ids) for each in found}) == len(selections)


def denying(name: str, expert: int) -> Request:
    allowed = tuple(other for other in range(7) if other != expert)
    greedy, stop = SamplingParams(temperature=0), StopRules(NUM_TOKENS)
    selection = ExpertSelection(allowed)
    return Request(name, PROMPTS[1], greedy, stop, returns=Returns(logprobs=0), experts=selection)
