import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.server.plan_file import parse_plan, read_plan
from coordinator.server.planned_workers import planned_of
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from tests.examples import examples

CONFIG = ModelConfig(n_layers=2, n_experts=2, top_k=1)
PLAN: dict[str, Any] = {
    "version": 1,
    "model": {"family": CONFIG.family, "d_model": CONFIG.d_model, "layers": [0, 1], "experts": 2, "top_k": 1},
    "coordinator": "a",
    "machines": {"a": "10.0.0.1", "b": None},
    "options": {"workers": 2, "replicas": 1, "micro-batches": "auto"},
    "fixed_rows": 2.5,
    "loads": [[0.5, 0.5], [0.9, 0.1]],
    "workers": [
        {"machine": "a", "cost": 2.0, "experts": {"0": [0], "1": [0, 1]}},
        {"machine": "b", "cost": 1.0, "experts": {"0": [1], "1": [0]}},
    ],
}


def changed(*path: Any, value: Any) -> dict[str, Any]:
    """The plan with another value at a place."""
    data = copy.deepcopy(PLAN)
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return data


def test_a_plan_says_who_holds_what() -> None:
    plan = parse_plan(PLAN)
    plan.check_model(CONFIG)
    planned = planned_of(plan)
    # The quicker worker first.
    assert planned.placement.holders == {(0, 0): (0,), (0, 1): (1,), (1, 0): (1, 0), (1, 1): (0,)}
    assert planned.costs == {0: 2.0, 1: 1.0}
    assert planned.loads[1, 0] == 0.9
    assert planned.redundant == 1
    assert plan.options == {"workers": "2", "replicas": "1", "micro-batches": "auto"}
    assert plan.num_slices == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "plan: expected an object, got list"),
        ({**PLAN, "more": 1}, "plan: unknown key 'more'"),
        ({k: v for k, v in PLAN.items() if k != "loads"}, "plan: loads is missing"),
        (changed("version", value=2), "version: 2 is not 1"),
        (changed("model", "family", value=""), "model: family: '' is not a short text"),
        (changed("model", "layers", value=[1, 0]), "model: layers: expected numbers in their order"),
        (changed("model", "experts", value=True), "model: experts: expected a whole number, got bool"),
        (changed("machines", value={"a": 3}), "machines: 'a': 3 is not a short text"),
        (changed("options", "threads", value=3), "options: unknown key 'threads'"),
        (
            changed("options", "replicas", value=[1]),
            "options: replicas: expected a text or a number, got list",
        ),
        (changed("options", "workers", value=3), "options: workers: is not 2"),
        (changed("fixed_rows", value=-1), "fixed_rows: -1 is not a number in"),
        (changed("loads", 0, value=[0.5]), "loads: expected 2 lists of one length"),
        (changed("loads", value=[[1.0] * 4] * 2), "loads: 4 of a layer are not those of 2 experts' slices"),
        (changed("loads", 0, 0, value="x"), "loads: 0: 'x' is not a number"),
        (changed("workers", 0, "cost", value=0), "workers: 0: cost: 0 is not a number in"),
        (changed("workers", 0, "machine", value="c"), "workers: 0: machine: 'c' is not among the machines"),
        (changed("workers", 0, "experts", "x", value=[0]), "workers: 0: experts: 'x': is not the number"),
        (
            changed("workers", 0, "experts", "0", value=[0, 0]),
            "workers: 0: experts: '0': a slot is there twice",
        ),
        (changed("workers", 0, "experts", "0", value=[5]), "workers: layer 0 has no expert in slot 5"),
        (changed("workers", 0, "experts", "1", value=[0]), "workers: no worker holds slot 1 of layer 1"),
    ],
)
def test_what_is_wrong_is_named(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_plan(data)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(PLAN)), _JSON)
@settings(max_examples=examples(300))
def test_whatever_stands_at_a_key_it_is_read_or_refused(key: str, value: Any) -> None:
    with suppress(ConfigError):
        parse_plan({**PLAN, key: value})


@given(st.sampled_from(["machine", "cost", "experts"]), _JSON)
@settings(max_examples=examples(200))
def test_whatever_a_worker_is_it_is_read_or_refused(key: str, value: Any) -> None:
    with suppress(ConfigError):
        parse_plan(changed("workers", 1, key, value=value))


def test_another_model_is_refused() -> None:
    plan = parse_plan(PLAN)
    with pytest.raises(ConfigError, match="the plan is of another model: experts 2, not 3"):
        plan.check_model(ModelConfig(n_layers=2, n_experts=3, top_k=1))
    with pytest.raises(ConfigError, match="the plan is of another model: layers 2 of 0"):
        plan.check_model(ModelConfig(n_layers=3, n_experts=2, top_k=1))


def test_machines_have_addresses_by_the_plan_or_by_an_option() -> None:
    plan = parse_plan(PLAN)
    assert plan.addresses(["b=10.0.0.2"]) == {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert plan.addresses(["b=10.0.0.2", "a=10.0.0.9"])["a"] == "10.0.0.9"
    with pytest.raises(ConfigError, match="nothing says which machine of the cluster 'b' of the plan is"):
        plan.addresses([])
    with pytest.raises(ConfigError, match="the plan has no machine 'c', but a, b"):
        plan.addresses(["c=10.0.0.3"])
    with pytest.raises(ConfigError, match="expected NAME=ADDRESS"):
        plan.addresses(["b"])


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(ConfigError, match=r"plan .*plan.json: No such file"):
        read_plan(path)
    path.write_bytes(b"\xff{")
    with pytest.raises(ConfigError, match=r"plan .*plan.json: "):
        read_plan(path)
    path.write_text(json.dumps(PLAN)[:-1] + ', "version": 1}')
    with pytest.raises(ConfigError, match="duplicate key 'version'"):
        read_plan(path)
    path.write_text(json.dumps(PLAN))
    assert read_plan(path) == parse_plan(PLAN)
