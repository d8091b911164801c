"""What the chart makes, by the schemas of Kubernetes and of operators, which know each field and its type."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import VARIANTS, variants
from tests.deploy.kubernetes_objects import NEWEST, OLDEST, core_errors, operator_errors
from tests.deploy.pods import Object, containers, of_kind, pods

pytestmark = pytest.mark.deploy


@pytest.mark.parametrize("name", VARIANTS)
def test_kubernetes_knows_every_field(tmp_path: Path, name: str) -> None:
    assert core_errors(variants()[name], tmp_path, NEWEST) == []


@pytest.mark.parametrize("name", ["least", "plain-fetched"])
def test_so_does_the_oldest_that_the_chart_takes(tmp_path: Path, name: str) -> None:
    assert core_errors(variants()[name], tmp_path, OLDEST) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_operators_know_every_field(name: str) -> None:
    assert operator_errors(variants()[name]) == []


def _container(objects: list[Object]) -> Any:
    return next(containers(next(template for _, template in pods(objects))))


def _spec(objects: list[Object], kind: str) -> Any:
    return of_kind(objects, kind)[0]["spec"]


@pytest.mark.parametrize("name", ["least", "plain"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda o: _container(o).update(imagePullPolice="Always"), "imagePullPolice"),
        (lambda o: _container(o)["ports"][0].update(containerPort="grpc"), "is not of type"),
        (
            lambda o: _container(o)["securityContext"].update(readOnlyRootFileSystem=True),
            "readOnlyRootFileSystem",
        ),
        (lambda o: _container(o).pop("name"), "'name' is a required property"),
        (lambda o: _spec(o, "NetworkPolicy").update(podSelectors={}), "podSelectors"),
        (lambda o: _spec(o, "Service")["ports"][0].pop("port"), "'port' is a required property"),
        (lambda o: _spec(o, "PodDisruptionBudget").update(minAvailabel=1), "minAvailabel"),
    ],
)
def test_a_mistake_in_an_object_is_found(
    tmp_path: Path, name: str, change: Callable[[list[Object]], object], problem: str
) -> None:
    wrong = copy.deepcopy(variants()[name])
    change(wrong)
    found = core_errors(wrong, tmp_path, NEWEST)
    assert any(problem in each for each in found), found


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("RayCluster", lambda s: s.update(rayVersoin="2.60.0"), "rayVersoin"),
        ("RayCluster", lambda s: s["headGroupSpec"].update(rayStartParams={"port": 6379}), "not of type"),
        ("RayCluster", lambda s: s.pop("headGroupSpec"), "headGroupSpec"),
        ("RayCluster", lambda s: s["workerGroupSpecs"][0].update(replicas="2"), "not of type"),
        ("RayCluster", lambda s: s["workerGroupSpecs"][0]["template"]["spec"].update(volume=[]), "volume"),
        ("RayCluster", lambda s: s.update(gcsFaultToleranceOptions={"backend": "etcd"}), "etcd"),
        ("ServiceMonitor", lambda s: s["endpoints"][0].update(intervall="15s"), "intervall"),
        ("ServiceMonitor", lambda s: s["endpoints"][0].update(interval="15 seconds"), "15 seconds"),
        ("PrometheusRule", lambda s: s.update(groups=[{"rules": []}]), "name"),
    ],
)
def test_a_mistake_in_an_object_of_an_operator_is_found(
    kind: str, change: Callable[[Any], object], problem: str
) -> None:
    wrong = copy.deepcopy(variants()["monitored"])
    change(_spec(wrong, kind))
    found = operator_errors(wrong)
    assert any(problem in each for each in found), found
