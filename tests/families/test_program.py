"""A step as one program of C has the bits of the model's parts, called one after the other: of every family,
in every dtype, with experts here and on workers, watched and not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from coordinator.config.engine import EngineConfig
from moe_model.checkpoint.reader import Checkpoint
from moe_model.families import REGISTRY
from moe_model.kernels.base import Router
from moe_model.kernels.step_program import PagedAttend, ProgramPart, StepProgram
from moe_model.model import Model, Part
from tests.families.cases import CASES
from tests.families.features import Check, masks, remove_an_expert, replace_an_expert
from tests.families.ours import CONFIG, PROMPTS, generate
from tests.families.rows import OWN_FORMAT, Row, make_requests, write_row
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native.program import NativeProgram

pytestmark = needs_native
NATIVE = replace(CONFIG, kernels="native", num_threads=2)
VARIANTS = [(name, variant) for name, case in CASES.items() for variant in ("", *case.variants)]


class Compared:
    """Runs every step both ways, Python's first: the program reads what it writes itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_steps, self.num_calls = 0, 0
        self._forward = Model.forward_parts
        compared = self

        def forward_parts(model: Model, parts: Sequence[Part]) -> Tensor:
            return compared.both(model, parts)

        monkeypatch.setattr(Model, "forward_parts", forward_parts)

    def both(self, model: Model, parts: Sequence[Part]) -> Tensor:
        if not isinstance(parts[0].attend, PagedAttend):
            # An oracle.
            return self._forward(model, parts)
        program = model.program
        assert program is not None, "all of a family's parts are in C"
        model.program = None
        expected_TD = self._forward(model, parts)
        model.program = _Counted(program, self)
        h_TD = self._forward(model, parts)
        model.program = program
        assert torch.equal(h_TD, expected_TD)
        self.num_steps += 1
        return h_TD


class _Counted:
    def __init__(self, program: StepProgram, compared: Compared) -> None:
        self._program, self._compared = program, compared

    def start(self, *arguments: Any, **options: Any) -> Any:
        self._compared.num_calls += 1
        return self._program.start(*arguments, **options)

    def with_routers(self, routers: tuple[Router | None, ...]) -> StepProgram | None:
        other = self._program.with_routers(routers)
        return None if other is None else _Counted(other, self._compared)

    def room_for_choices(self, num_tokens: int) -> Tensor | None:
        return self._program.room_for_choices(num_tokens)

    def times(self, *, go_on: bool) -> Mapping[ProgramPart, float]:
        return self._program.times(go_on=go_on)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    return Compared(monkeypatch)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_each_variant_of_a_family(name: str, variant: str, tmp_path: Path, compared: Compared) -> None:
    case = CASES[name]
    checkpoint = Checkpoint.open(case.write(case.make_model(variant), tmp_path))
    _serve(Row(name, checkpoint, NATIVE))
    assert compared.num_calls == compared.num_steps >= 12


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"expert_dtype": "int8"},
        {"expert_dtype": "q8"},
        {"expert_dtype": "q4"},
        {"dtype": "bfloat16", "expert_dtype": "int8"},
        {"dtype": "bfloat16", "expert_dtype": "q8", "shared_dtype": "q8"},
    ],
    ids=lambda options: "-".join(options.values()),
)
@pytest.mark.parametrize("family", REGISTRY)
def test_each_dtype(family: str, options: dict[str, Any], tmp_path: Path, compared: Compared) -> None:
    _serve(Row(family, write_row(family, tmp_path), replace(NATIVE, **options)))
    assert compared.num_calls == compared.num_steps >= 12


@pytest.mark.parametrize("family", REGISTRY)
def test_experts_on_workers(family: str, tmp_path: Path, compared: Compared) -> None:
    row = Row(family, write_row(family, tmp_path), replace(NATIVE, micro_batches=1))
    row.run(make_requests(), num_workers=2)
    assert compared.num_calls == compared.num_steps >= 12


@pytest.mark.parametrize("family", [OWN_FORMAT, "deepseek_v3"])
def test_two_parts_in_flight(family: str, tmp_path: Path, compared: Compared) -> None:
    row = Row(family, write_row(family, tmp_path), replace(NATIVE, micro_batches=2))
    row.run(make_requests(), num_workers=2)
    assert compared.num_calls > compared.num_steps >= 12


@pytest.mark.parametrize("family", [OWN_FORMAT, "qwen2_moe"])
def test_a_step_that_is_watched(family: str, tmp_path: Path, compared: Compared) -> None:
    found = generate(write_row(family, tmp_path), NATIVE)
    assert compared.num_calls == compared.num_steps >= 12
    assert all(len(each.routed_TLK) == len(each.ids) for each in found)


@pytest.mark.parametrize(
    "feature", [masks, replace_an_expert, remove_an_expert], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("family", [OWN_FORMAT, "ernie4_5_moe"])
def test_other_routes_than_the_models_own(
    feature: Check, family: str, tmp_path: Path, compared: Compared
) -> None:
    feature(Row(family, write_row(family, tmp_path), NATIVE), tmp_path)
    assert compared.num_calls == compared.num_steps >= 12


def test_an_exchanged_model_stops_at_no_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once no request uses what it was before, its steps are one call again."""
    row = Row(OWN_FORMAT, write_row(OWN_FORMAT, tmp_path), NATIVE)
    options: list[bool] = []
    start = NativeProgram.start

    def watched(program: NativeProgram, *arguments: Any, stops_at_routers: bool, **others: Any) -> Any:
        options.append(stops_at_routers)
        return start(program, *arguments, stops_at_routers=stops_at_routers, **others)

    monkeypatch.setattr(NativeProgram, "start", watched)
    remove_an_expert(row, tmp_path)
    assert len(options) >= 12
    assert not any(options)


def _serve(row: Row, config: EngineConfig | None = None) -> None:
    row.run(make_requests(prompts=PROMPTS), config)
