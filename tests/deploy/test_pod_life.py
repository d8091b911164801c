"""Pods of the chart are probed, drain and end as the product does; others would be found."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.config.serve import ServeConfig
from coordinator.config.service import Addresses
from expertmesh.commands.options import declared
from tests.deploy.chart import VARIANTS, variants
from tests.deploy.pod_life import violations
from tests.deploy.pods import Object, of_kind, pods

pytestmark = pytest.mark.deploy


@pytest.mark.parametrize("name", VARIANTS)
def test_pods_live_well(name: str) -> None:
    assert violations(variants()[name]) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_is_one_of_serve(name: str) -> None:
    known = {each.option.flag for each in declared(ServeConfig)}
    (spec,) = (t["spec"] for where, t in pods(variants()[name]) if "head" in where or "coordinator" in where)
    (container,) = (each for each in spec["containers"] if each["name"] == "coordinator")
    options = {each.partition("=")[0] for each in container["args"] if each.startswith("--")}
    assert len(options) > 10
    assert options - known == set()


def test_addresses_are_the_table_s() -> None:
    """Those that serve has by default, but for the host."""
    (spec,) = (t["spec"] for where, t in pods(variants()["plain"]) if "coordinator" in where)
    given = dict(each.partition("=")[::2] for each in spec["containers"][0]["args"])
    defaults = Addresses()
    for option, default in (("--grpc-address", defaults.grpc), ("--http-address", defaults.http)):
        assert given[option].partition(":")[2] == str(default).partition(":")[2]
    assert given["--control-address"] == defaults.control


def _coordinator(objects: list[Object]) -> Any:
    return next(t for where, t in pods(objects) if "head" in where or "coordinator" in where)["spec"]


def _worker(objects: list[Object]) -> Any:
    return next(t for where, t in pods(objects) if "worker" in where)["spec"]


def _serve(objects: list[Object]) -> Any:
    return next(each for each in _coordinator(objects)["containers"] if each["name"] == "coordinator")


MISTAKES: list[tuple[Callable[[list[Object]], object], str]] = [
    (
        lambda o: _coordinator(o)["volumes"].append({"name": "x", "emptyDir": {}}),
        "volume x: is mounted nowhere",
    ),
    (lambda o: _worker(o)["volumes"].pop(0), "volume tmp: there is none"),
    (lambda o: _serve(o)["ports"][0].update(name="metrics"), "port metrics: two have this name"),
    (lambda o: _serve(o).pop("livenessProbe"), "livenessProbe is missing"),
    (lambda o: _serve(o)["readinessProbe"]["grpc"].update(service="liveness"), "asks for 'liveness'"),
    (lambda o: _serve(o)["livenessProbe"]["grpc"].update(service=""), "livenessProbe asks for ''"),
    (lambda o: _serve(o)["livenessProbe"]["grpc"].update(port=50059), "asks at 50059, where nothing listens"),
    (lambda o: _worker(o)["containers"][0]["volumeMounts"].pop(1), "/dev/shm: is not there"),
    (lambda o: _worker(o)["containers"][0].pop("lifecycle"), "does not leave before it ends"),
    (lambda o: _worker(o).update(terminationGracePeriodSeconds=60), "its grace is shorter than its leaving"),
    (lambda o: _worker(o).pop("affinity"), "two copies of an expert may be on one node"),
    (
        lambda o: _coordinator(o).update(terminationGracePeriodSeconds=30),
        "its grace is shorter than its drain",
    ),
    (lambda o: _coordinator(o).pop("shareProcessNamespace"), "Ray cannot see the processes"),
    (lambda o: of_kind(o, "Service")[0]["spec"]["selector"].update(x="y"), "selects 0 kinds of pods"),
    (lambda o: of_kind(o, "Service")[0]["spec"]["ports"][0].update(targetPort="rpc"), "no rpc there"),
]


@pytest.mark.parametrize("name", ["least", "plain"])
@pytest.mark.parametrize(("change", "problem"), MISTAKES, ids=[problem for _, problem in MISTAKES])
def test_a_mistake_is_found(name: str, change: Callable[[list[Object]], object], problem: str) -> None:
    wrong = copy.deepcopy(variants()[name])
    change(wrong)
    found = violations(wrong)
    assert any(problem in each for each in found), found


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("least", lambda o: _coordinator(o)["containers"][0].pop("lifecycle"), "Ray's head ends while"),
        ("least", lambda o: _serve(o).pop("command"), "does not wait for Ray"),
        ("least", lambda o: _coordinator(o)["containers"].reverse(), "in the first container only"),
        (
            "plain",
            lambda o: _coordinator(o)["initContainers"][0].pop("restartPolicy"),
            "does not wait for Ray",
        ),
    ],
)
def test_ray_that_is_not_there_is_found(
    name: str, change: Callable[[list[Object]], object], problem: str
) -> None:
    wrong = copy.deepcopy(variants()[name])
    change(wrong)
    found = violations(wrong)
    assert any(problem in each for each in found), found
