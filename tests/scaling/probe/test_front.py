"""Simulate, take that for measured, fit, simulate again: the same rates."""

from dataclasses import replace

import msgspec
import pytest

from benchmarks.engine import Load
from moe_model.config import ModelConfig
from scaling.machines import Machine, Overheads
from scaling.probe.fit import explained, fitted
from scaling.probe.front import simulated_token_s, with_front
from scaling.probe.models import CALIBRATION
from scaling.probe.passes import Depth, short_steps
from scaling.probe.service import Service, engine_token_seconds
from scaling.probe.steps import Measured
from scaling.shape import shape_of_config
from tests.scaling.probe.test_fit import MACHINE, SHAPES, TRUE, measured, work

NAME = "modularforge"
CONFIG = replace(CALIBRATION[NAME], n_layers=2)
LOAD = Load(prompt_tokens=16, new_tokens=9)
BATCHES = (1, 4, 8)
FRONT = msgspec.structs.replace(TRUE, publish_us=900, token_us=120)


def steps_of(machine: Machine, scale: float = 1.0) -> list[Measured]:
    """Of a load, by the machine's costs."""
    shape, found = shape_of_config(CONFIG, NAME), []
    for batch in BATCHES:
        prompts = work(shape, 16 * batch, batch, 8)
        tokens = [work(shape, batch, batch, 16 + index) for index in range(1, LOAD.new_tokens)]
        for each in (
            Measured(NAME, "prefill", batch, 0, (prompts,), 1.0),
            Measured(NAME, "decode", batch, 0, tuple(tokens), 1.0),
        ):
            seconds = scale * explained(machine, shape, each)
            found.append(msgspec.structs.replace(each, seconds=seconds))
    return found


def services_of(machine: Machine, alone: list[Measured]) -> list[Service]:
    """As a simulated server takes it."""
    return [
        Service(
            batch,
            simulated_token_s(machine, CONFIG, LOAD, batch),
            engine_token_seconds(alone, LOAD, batch),
        )
        for batch in BATCHES
    ]


def with_overheads(overheads: Overheads) -> Machine:
    return msgspec.structs.replace(MACHINE, overheads=overheads)


def assert_front(found: Machine) -> None:
    """About as was simulated."""
    assert found.overheads.publish_us == pytest.approx(900, rel=0.1)
    assert found.overheads.token_us == pytest.approx(120, rel=0.1)


def test_a_fit_of_what_was_simulated_simulates_the_same() -> None:
    true = with_overheads(FRONT)
    alone = steps_of(true)
    found = fitted(MACHINE, SHAPES, measured(true))
    found = with_front(found, CONFIG, LOAD, alone, services_of(true, alone))
    assert_front(found)
    for batch in (*BATCHES, 16):
        again, before = (simulated_token_s(each, CONFIG, LOAD, batch) for each in (found, true))
        assert again == pytest.approx(before, rel=0.01), batch


def test_without_a_front_there_is_none() -> None:
    true = with_overheads(TRUE)
    alone = steps_of(true)
    found = with_front(true, CONFIG, LOAD, alone, services_of(true, alone)).overheads
    assert found.publish_us + found.token_us < 5
    assert with_front(true, CONFIG, LOAD, alone, []).overheads == TRUE


def test_the_front_does_not_make_up_for_steps_that_the_fit_misses() -> None:
    """Steps and server take a millisecond a token longer than the fit says."""
    true = with_overheads(FRONT)
    says = steps_of(true)
    more = 0.001
    slow = [msgspec.structs.replace(each, seconds=each.seconds + more * each.batch) for each in says]
    services = [
        msgspec.structs.replace(each, token_s=each.token_s + more) for each in services_of(true, slow)
    ]
    found = with_front(true, CONFIG, LOAD, slow, services)
    assert_front(found)


def test_only_steps_of_the_first_load_are_what_a_server_runs() -> None:
    depth = Depth(None, (("tiny", ModelConfig()),), ((1, LOAD), (4, LOAD), (4, Load(200, 9))), 1, (), 1, 0)  # type: ignore[arg-type]
    shape = shape_of_config(CONFIG, NAME)
    alone: list[Measured] = []
    for batch, context in ((1, 16), (4, 16), (4, 200)):
        works = (work(shape, batch, batch, context),)
        alone.append(Measured(NAME, "prefill", batch, 0, works, 1.0))
        alone.append(Measured(NAME, "decode", batch, 0, works, 1.0))
    found = short_steps(alone, depth)
    assert found == alone[:4]
    assert {each.phase for each in found} == {"prefill", "decode"}
