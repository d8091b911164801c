"""The chart's RayClusters by the rules of KubeRay's operator, which no schema has."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.chart import VARIANTS, variants
from tests.deploy.kuberay_rules import violations
from tests.deploy.pods import Object, of_kind

pytestmark = pytest.mark.deploy


@pytest.mark.parametrize("name", VARIANTS)
def test_the_operator_takes_it(name: str) -> None:
    assert [each for cluster in of_kind(variants()[name], "RayCluster") for each in violations(cluster)] == []


def _head(cluster: Object) -> Any:
    return cluster["spec"]["headGroupSpec"]


def _variable(cluster: Object, name: str) -> None:
    _head(cluster)["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": "x"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c["metadata"].update(name="a" * 54), "name aaaa"),
        (lambda c: c["metadata"].update(name="1st"), "name 1st: is no DNS label"),
        (lambda c: c["spec"].update(networkPolicy={"mode": "DenyAll"}), "networkPolicy: needs an alpha gate"),
        (lambda c: c["spec"]["workerGroupSpecs"][0].pop("minReplicas"), "workers: without the autoscaler"),
        (lambda c: c["spec"]["workerGroupSpecs"][0].update(maxReplicas=9), "workers: without the autoscaler"),
        (lambda c: _head(c).update(resources={"CPU": "1"}), "head: resources and rayStartParams"),
        (lambda c: _head(c)["rayStartParams"].update(labels="a=b"), "head: labels"),
        (
            lambda c: _head(c)["template"]["spec"]["containers"][0].pop("ports"),
            "head: the operator adds a port",
        ),
        (lambda c: _variable(c, "RAY_USE_TLS"), "head: RAY_USE_TLS: is set by tlsOptions"),
        (lambda c: _variable(c, "RAY_GCS_STORAGE"), "RAY_GCS_STORAGE: belongs into"),
        (
            lambda c: _head(c)["template"]["spec"]["containers"][0]["volumeMounts"][0].update(
                mountPath="/etc/ray/tls"
            ),
            "head: /etc/ray/tls: is mounted",
        ),
        (
            lambda c: c["spec"].update(
                gcsFaultToleranceOptions={"backend": "rocksdb", "redisAddress": "redis:6379"}
            ),
            "redisAddress: is Redis's",
        ),
        (lambda c: c["spec"].update(gcsFaultToleranceOptions={"storage": {}}), "storage: is for rocksdb"),
        (
            lambda c: c["spec"].update(authOptions={"mode": "token"}, rayVersion="2.51.0"),
            "authOptions: needs rayVersion 2.52",
        ),
    ],
)
def test_what_it_would_refuse_is_found(change: Callable[[Object], object], problem: str) -> None:
    (cluster,) = of_kind(copy.deepcopy(variants()["all-tls"]), "RayCluster")
    change(cluster)
    found = violations(cluster)
    assert any(each.startswith(problem) for each in found), found
