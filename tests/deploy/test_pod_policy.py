"""Every pod that the chart makes keeps S15, and so do its networks; those that do not would be found."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy import network_policy, pod_policy, ray_policy
from tests.deploy.chart import VARIANTS, variants
from tests.deploy.pods import Object, containers, of_kind, pods

pytestmark = pytest.mark.deploy

# Its user has turned the network policy off and named an image by a tag.
OPEN = "spread"
PINNED = sorted(set(VARIANTS) - {OPEN})


@pytest.mark.parametrize("name", PINNED)
def test_pods_keep_the_policy(name: str) -> None:
    assert list(pods(variants()[name]))
    assert pod_policy.violations(variants()[name]) == []


@pytest.mark.parametrize("name", PINNED)
def test_networks_keep_the_policy(name: str) -> None:
    assert network_policy.violations(variants()[name]) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_ray_keeps_the_policy(name: str) -> None:
    assert ray_policy.violations(yaml.safe_dump_all(variants()[name]), is_yaml=True) == []


@pytest.mark.parametrize("name", ["least", "plain"])
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("node-manager-port", "x", "--node-manager-port is not pinned"),
        ("max-worker-port", "x", "--max-worker-port is not pinned"),
        ("include-dashboard", "x", "--include-dashboard=false is missing"),
        ("RAY_AUTH_MODE", "RAY_MODE", "RAY_AUTH_MODE=token is missing"),
        ("RAY_USAGE_STATS_ENABLED", "RAY_STATS", "RAY_USAGE_STATS_ENABLED=0 is missing"),
        ("name: HOME\n", "name: RAY_AUTH_TOKEN\n", "holds a token"),
    ],
)
def test_a_mistake_in_how_ray_starts_is_found(name: str, old: str, new: str, problem: str) -> None:
    text = yaml.safe_dump_all(variants()[name])
    assert old in text
    found = ray_policy.violations(text.replace(old, new), is_yaml=True)
    assert any(problem in each for each in found), found


def test_what_a_user_opens_is_found() -> None:
    found = pod_policy.violations(variants()[OPEN])
    assert {each.partition("image ")[2] for each in found} == {
        "registry.example/expertmesh:0.1.0 is not pinned by a digest"
    }
    assert any("ingress is not denied" in each for each in network_policy.violations(variants()[OPEN]))


def _pod(objects: list[Object]) -> Any:
    return next(template for _, template in pods(objects))["spec"]


def _container(objects: list[Object]) -> Any:
    return next(containers({"spec": _pod(objects)}))


def _security(objects: list[Object]) -> Any:
    return _container(objects)["securityContext"]


def _secret(objects: list[Object]) -> Any:
    return next(each["secret"] for each in _pod(objects)["volumes"] if "secret" in each)


def _set(objects: list[Object], name: str, value: str) -> None:
    env = _container(objects)["env"]
    env[:] = [*(each for each in env if each["name"] != name), {"name": name, "value": value}]


POD_MISTAKES: list[tuple[Callable[[list[Object]], object], str]] = [
    (lambda o: _pod(o).pop("automountServiceAccountToken"), "has a token of a service account"),
    (lambda o: _pod(o).update(hostNetwork=True), "hostNetwork: shares the node's"),
    (lambda o: _pod(o).update(hostPID=True), "hostPID: shares the node's"),
    (lambda o: _pod(o).update(hostIPC=True), "hostIPC: shares the node's"),
    (lambda o: _pod(o)["securityContext"].update(runAsUser=0), "runAsUser: is root"),
    (lambda o: _pod(o)["securityContext"].pop("runAsGroup"), "runAsGroup: is root"),
    (lambda o: _pod(o)["securityContext"].pop("fsGroup"), "fsGroup: is root"),
    (lambda o: _pod(o)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot is not true"),
    (lambda o: _secret(o).pop("defaultMode"), "others may read it"),
    (lambda o: _secret(o).update(defaultMode=0o444), "others may read it"),
    (lambda o: _pod(o)["volumes"].append({"name": "x", "emptyDir": {}}), "emptyDir x: may fill"),
    (
        lambda o: _pod(o)["volumes"].append({"name": "x", "hostPath": {"path": "/var/run"}}),
        "hostPath x: is the node's own",
    ),
    (lambda o: _security(o).update(allowPrivilegeEscalation=True), "allowPrivilegeEscalation is True"),
    (lambda o: _security(o).pop("allowPrivilegeEscalation"), "allowPrivilegeEscalation is None"),
    (lambda o: _security(o).update(readOnlyRootFilesystem=False), "readOnlyRootFilesystem is False"),
    (lambda o: _security(o).update(runAsNonRoot=False), "runAsNonRoot is False"),
    (lambda o: _security(o).update(privileged=True), "privileged is True"),
    (lambda o: _security(o).update(runAsUser=0), "runAsUser is 0"),
    (lambda o: _security(o).update(capabilities={"drop": ["ALL"], "add": ["NET_RAW"]}), "capabilities is"),
    (lambda o: _security(o).update(seccompProfile={"type": "Unconfined"}), "seccompProfile is"),
    (lambda o: _container(o).pop("securityContext"), "readOnlyRootFilesystem is None"),
    (lambda o: _container(o)["resources"]["limits"].pop("memory"), "has no limits of memory"),
    (lambda o: _container(o)["resources"]["requests"].pop("cpu"), "has no requests of cpu"),
    (lambda o: _container(o).update(image="expertmesh:1"), "expertmesh:1 is not pinned"),
    (lambda o: _container(o)["ports"][0].update(hostPort=6379), "hostPort: is open on the node"),
    (lambda o: _set(o, "RAY_AUTH_TOKEN", "x"), "RAY_AUTH_TOKEN is in the environment"),
    (lambda o: _set(o, "EXPERTMESH_API_KEY", "x"), "EXPERTMESH_API_KEY is in the environment"),
    (lambda o: _set(o, "RAY_AUTH_MODE", "disabled"), "has no token of Ray's"),
    (lambda o: _set(o, "RAY_AUTH_TOKEN_PATH", ""), "has no token of Ray's"),
    (lambda o: _set(o, "RAY_USAGE_STATS_ENABLED", "1"), "Ray's usage statistics are on"),
    (
        lambda o: o.append({"kind": "Secret", "metadata": {"name": "ray"}, "data": {"token": "eA=="}}),
        "Secret ray: is in a file",
    ),
]


@pytest.mark.parametrize("name", ["least", "plain"])
@pytest.mark.parametrize(("change", "problem"), POD_MISTAKES, ids=[problem for _, problem in POD_MISTAKES])
def test_a_mistake_in_a_pod_is_found(
    name: str, change: Callable[[list[Object]], object], problem: str
) -> None:
    wrong = copy.deepcopy(variants()[name])
    change(wrong)
    found = pod_policy.violations(wrong)
    assert any(problem in each for each in found), found


def _network(objects: list[Object], number: int = 0) -> Any:
    return of_kind(objects, "NetworkPolicy")[number]["spec"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda o: _network(o).update(policyTypes=["Ingress"]), "egress is not denied by default"),
        (
            lambda o: _network(o)["podSelector"]["matchLabels"].update(x="y"),
            "ingress is not denied by default",
        ),
        (lambda o: _network(o)["ingress"].append({"ports": [{"port": 1}]}), "ingress with any peer"),
        (lambda o: _network(o)["egress"][0]["to"].append({}), "egress with any peer"),
        (lambda o: _network(o)["ingress"][0].pop("ports"), "ingress at any port"),
        (lambda o: _network(o)["egress"][0]["ports"].append({"protocol": "TCP"}), "egress at any port"),
        (lambda o: _network(o)["egress"].pop(1), "no name can be looked up"),
        (lambda o: _network(o)["ingress"][0]["ports"][0].update(endPort=20199), "port 10001 of Ray Client"),
        (lambda o: _network(o, 1)["ingress"].pop(0), "port grpc (50051) is closed to all"),
        (lambda o: _network(o)["ingress"][0]["ports"].pop(0), "port gcs (6379) is closed to all"),
    ],
)
def test_a_mistake_in_a_network_is_found(change: Callable[[list[Object]], object], problem: str) -> None:
    wrong = copy.deepcopy(variants()["least"])
    change(wrong)
    found = network_policy.violations(wrong)
    assert any(problem in each for each in found), found
