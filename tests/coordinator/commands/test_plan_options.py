import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.commands.plan_options import config_of
from coordinator.config.serve import ServeConfig
from expertmesh.commands.options import add_options
from expertmesh.commands.parser import OneLineParser
from moe_model.errors import ConfigError
from tests.coordinator.server.test_plan_file import PLAN

OPTIONS = {"workers": 2, "replicas": 2, "dtype": "bfloat16", "micro-batches": "2", "speculate": "ngram:3"}


def config(tmp_path: Path, *words: str, options: dict[str, Any] | None = None) -> ServeConfig:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**PLAN, "options": {**OPTIONS, **(options or {})}}))
    parser = OneLineParser(prog="expertmesh serve")
    add_options(parser, ServeConfig)
    return config_of(parser.parse_args(["folder", f"--plan={path}", *words]))


def test_the_plan_sets_its_options(tmp_path: Path) -> None:
    found = config(tmp_path, "--max-context", "100", options={"rebalance-interval": 0, "max-gap": "off"})
    assert (found.workers.num_workers, found.workers.replicas) == (2, 2)
    assert (found.engine.dtype, found.engine.micro_batches, found.engine.speculate) == ("bfloat16", 2, 3)
    assert (found.workers.rebalance_interval, found.engine.max_gap_ms) == (0.0, None)
    assert found.engine.max_context == 100
    assert found.workers.plan == tmp_path / "plan.json"


def test_what_is_given_as_planned_is_no_contradiction(tmp_path: Path) -> None:
    assert config(tmp_path, "--workers=2", "--dtype", "bfloat16").workers.num_workers == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "3"], "--workers 3 contradicts the plan's 2"),
        # A default that was asked for is not left out.
        (["--replicas=1"], "--replicas 1 contradicts the plan's 2"),
        (["--dtype=float32"], "--dtype float32 contradicts the plan's bfloat16"),
        (["--micro-batches=auto"], "--micro-batches auto contradicts the plan's 2"),
        (["--speculate=off"], "--speculate off contradicts the plan's 3"),
        (["--workers-per-node=1"], "--workers-per-node follows the machines of the cluster"),
    ],
)
def test_a_contradiction_is_refused_by_name(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(tmp_path, *words)
    assert message in str(raised.value)


def test_an_option_that_a_plan_cannot_have_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="options: argument --replicas: "):
        config(tmp_path, options={"replicas": "many"})


def test_places_without_a_plan_are_refused() -> None:
    parser = OneLineParser(prog="expertmesh serve")
    add_options(parser, ServeConfig)
    with pytest.raises(ConfigError, match="--plan-machine needs --plan"):
        config_of(parser.parse_args(["folder", "--plan-machine", "a=b"]))
    assert config_of(parser.parse_args(["folder"])).workers.plan is None
