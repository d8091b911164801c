"""The kustomizations by kubectl: each builds, agrees with the chart, and keeps the rules of its objects."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import deploy_manifests
from tests.deploy import kuberay_rules, network_policy, pod_policy, ray_policy
from tests.deploy.chart import Values, merged, rendered
from tests.deploy.kubernetes_objects import NEWEST, core_errors, operator_errors
from tests.deploy.pods import of_kind
from tests.deploy.tools import DEPLOY, Ran, run

pytestmark = pytest.mark.deploy

KUBERNETES = DEPLOY / "kubernetes"
NOWHERE = "sha256:" + "0" * 64
# Which values of the chart give the same.
OVERLAYS: dict[str, Values] = {
    "base": {},
    "overlays/gcs-fault-tolerance": {
        "gcsFaultTolerance": {
            "backend": "redis",
            "redisAddress": "redis:6379",
            "redisPassword": "expertmesh-redis",
        },
        "networkPolicy": {
            "egress": [
                {
                    "to": [{"podSelector": {"matchLabels": {"app": "redis"}}}],
                    "ports": [{"protocol": "TCP", "port": 6379}],
                }
            ]
        },
    },
    "overlays/mtls": {
        "ray": {"mtls": True},
        "secrets": {"clientCa": "expertmesh-client-ca", "dataTls": "expertmesh-data"},
    },
    "overlays/gpu-coordinator": {
        "coordinator": {"gpus": 1, "image": {"repository": "expertmesh-cuda", "digest": NOWHERE}}
    },
}


def build(folder: Path) -> Ran:
    return run("kubectl", "kustomize", folder)


@cache
def built(name: str) -> list[Any]:
    """The objects of one kustomization."""
    ran = build(KUBERNETES / name)
    assert ran.code == 0, ran.output
    return [each for each in yaml.safe_load_all(ran.output) if each]


def test_every_kustomization_is_known() -> None:
    found = {str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("kustomization.yaml")}
    assert found == set(OVERLAYS)


def test_the_base_is_what_the_chart_renders() -> None:
    assert deploy_manifests.manifest() == deploy_manifests.MANIFEST.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OVERLAYS)
def test_it_is_what_the_chart_gives_with_those_values(name: str) -> None:
    values = yaml.safe_load((KUBERNETES / "base" / "values.yaml").read_text(encoding="utf-8"))
    theirs = rendered(merged(values, OVERLAYS[name]), release=deploy_manifests.RELEASE)
    assert _sorted(built(name)) == _sorted(theirs)


@pytest.mark.parametrize("name", OVERLAYS)
def test_it_keeps_every_rule(tmp_path: Path, name: str) -> None:
    objects = built(name)
    assert core_errors(objects, tmp_path, NEWEST) == []
    assert operator_errors(objects) == []
    assert pod_policy.violations(objects) == []
    assert network_policy.violations(objects) == []
    assert ray_policy.violations(yaml.safe_dump_all(objects), is_yaml=True) == []
    assert [
        each for cluster in of_kind(objects, "RayCluster") for each in kuberay_rules.violations(cluster)
    ] == []


def test_images_are_named_as_the_page_says(tmp_path: Path) -> None:
    """In a RayCluster too, which kustomize has never heard of."""
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "mine"
    mine.mkdir()
    digest = "sha256:" + "ab" * 32
    images = [{"name": name, "newName": f"registry.example/{name}", "digest": digest} for name in IMAGES]
    (mine / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {"resources": ["../overlays/gpu-coordinator"], "images": images, "namespace": "models"}
        )
    )
    ran = build(mine)
    assert ran.code == 0, ran.output
    assert NOWHERE not in ran.output
    assert {f"registry.example/{name}@{digest}" for name in IMAGES} <= set(ran.output.split())
    assert {each["metadata"]["namespace"] for each in yaml.safe_load_all(ran.output)} == {"models"}


IMAGES = ("expertmesh", "expertmesh-cuda")


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        (
            "base/kustomization.yaml",
            lambda s: s.replace("expertmesh.yaml", "expertmseh.yaml"),
            "expertmseh.yaml",
        ),
        ("base/kustomization.yaml", lambda s: s.replace("resources", "resource"), "unknown field"),
        ("base/expertmesh.yaml", lambda s: s.replace("kind: Service\n", "kind Service\n", 1), "yaml"),
        (
            "overlays/gpu-coordinator/kustomization.yaml",
            lambda s: s.replace("/containers/1/args/-", "/containers/7/args/-"),
            "containers/7",
        ),
        (
            "overlays/gpu-coordinator/kustomization.yaml",
            lambda s: s.replace("value: coordinator", "value: worker"),
            "testing value",
        ),
    ],
)
def test_a_mistake_is_found(tmp_path: Path, file: str, change: Callable[[str], str], problem: str) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    path = tmp_path / "kubernetes" / file
    text = path.read_text(encoding="utf-8")
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")
    ran = build(path.parent)
    assert ran.code != 0
    assert problem in ran.output.lower() or problem in ran.output, ran.output


def _sorted(objects: list[Any]) -> list[str]:
    """Comparable: what is a list in one order may come in another, and Helm says its name."""
    return sorted(json.dumps(_plain(each), sort_keys=True) for each in objects)


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(each) for key, each in node.items() if key not in OF_HELM}
    if isinstance(node, list):
        return sorted((_plain(each) for each in node), key=lambda each: json.dumps(each, sort_keys=True))
    return node


OF_HELM = ("app.kubernetes.io/managed-by", "helm.sh/chart")
