"""The Helm chart by Helm itself: it lints, renders with many values, and refuses those that make no sense."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import (
    CHART,
    DIGEST,
    FETCHED,
    LEAST,
    MONITORED,
    VARIANTS,
    RefusedError,
    Values,
    findings,
    merged,
    rendered,
    variants,
)
from tests.deploy.tools import DEPLOY

pytestmark = pytest.mark.deploy


def test_the_linter_finds_nothing() -> None:
    assert findings(CHART, [merged(LEAST, changes) for changes in VARIANTS.values()]) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("templates/service.yaml", "  type: {{", "   type: {{", "unable to parse YAML"),
        ("templates/service.yaml", "{{ .Values.service.type }}", "{{ .Values.service.type", "not defined"),
        ("templates/service.yaml", ".Values.service.type", ".Values.nothing.type", "nil pointer"),
        ("Chart.yaml", "version: 0.1.0", "version: one", '"one" is invalid'),
    ],
)
def test_the_linter_finds_a_mistake(tmp_path: Path, file: str, old: str, new: str, problem: str) -> None:
    chart = tmp_path / "expertmesh"
    shutil.copytree(CHART, chart)
    text = (chart / file).read_text()
    assert old in text
    (chart / file).write_text(text.replace(old, new, 1))
    found = findings(chart, [LEAST])
    assert any(problem in each for each in found), found


@pytest.mark.parametrize("name", VARIANTS)
def test_it_renders(name: str) -> None:
    kinds = {each["kind"] for each in variants()[name]}
    is_plain = VARIANTS[name].get("mode") == "plain"
    assert ("RayCluster" in kinds) is not is_plain
    assert ("StatefulSet" in kinds) is is_plain
    assert "Service" in kinds


def test_every_value_matters() -> None:
    """One that no template reads is a promise that is not kept."""
    texts = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())
    defaults = _leaves(_defaults())
    assert len(defaults) > 50
    unread = {
        path
        for path in defaults
        if not any(re.search(rf"\.{step}\b", texts) for step in [path.rpartition(".")[2]])
        # These are passed on as a whole.
        and not path.startswith(("networkPolicy.", "image.pullSecrets"))
        and not re.match(r"(coordinator|workers|ray)\.\w*[rR]esources\.", path)
    }
    assert unread == set()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        # The schema's.
        ({"nothing": 1}, "additional properties 'nothing' not allowed"),
        ({"workers": {"replica": 3}}, "additional properties 'replica' not allowed"),
        ({"mode": "deployment"}, "value must be one of 'raycluster', 'plain'"),
        ({"image": {"repository": ""}}, "/image/repository"),
        ({"image": {"digest": ""}}, "/image"),
        ({"image": {"digest": "", "tag": "latest"}}, "/image/tag"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
        ({"model": {"source": ""}}, "/model/source"),
        ({"secrets": {"rayToken": ""}}, "/secrets/rayToken"),
        ({"secrets": {"tls": "Not A Name"}}, "/secrets/tls"),
        ({"workers": {"replicas": 0}}, "minimum: got 0, want 1"),
        ({"workers": {"replicas": "2"}}, "got string, want integer"),
        ({"coordinator": {"args": ["serve"]}}, "/coordinator/args/0"),
        ({"coordinator": {"env": [{"name": "RAY_AUTH_TOKEN", "value": "x"}]}}, "/coordinator/env/0/name"),
        ({"workers": {"env": [{"name": "RAY_AUTH_MODE", "value": "disabled"}]}}, "/workers/env/0/name"),
        ({"podSecurityContext": {"runAsUser": 0}}, "minimum: got 0, want 1"),
        ({"networkPolicy": {"clients": []}}, "/networkPolicy/clients"),
        ({"ray": {"version": "2.60"}}, "/ray/version"),
        ({"gcsFaultTolerance": {"backend": "etcd"}}, "value must be one of"),
        # The templates'.
        ({"secrets": {"tls": ""}}, "name both, or say insecure: true"),
        ({"secrets": {"apiKeys": ""}}, "name both, or say insecure: true"),
        ({"insecure": True, "secrets": {"tls": "", "clientCa": "ca"}}, "clientCa: needs secrets.tls"),
        ({"mode": "plain", "ray": {"mtls": True}}, "ray.mtls: only KubeRay makes certificates"),
        ({"mode": "plain", "gcsFaultTolerance": {"backend": "rocksdb"}}, "is KubeRay's"),
        ({"gcsFaultTolerance": {"backend": "redis"}}, "say where Redis is"),
        ({"workers": {"copies": 3}}, "more copies of an expert than workers"),
        ({"monitoring": {**MONITORED, "apiKeySecret": ""}}, "metrics need an API key"),
        ({"monitoring": {**MONITORED, "caSecret": ""}}, "a scraper shows its key to any server"),
        ({"monitoring": {**MONITORED, "serverName": ""}}, "a scraper shows its key to any server"),
        ({"monitoring": MONITORED, "secrets": {"clientCa": "ca"}}, "a scraper needs a certificate"),
        ({"coordinator": {"image": {"repository": "cuda"}}}, "image.digest or image.tag says which image"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: Values, problem: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(problem)):
        rendered(merged(LEAST, changes))


def test_what_is_fetched_needs_a_way_out() -> None:
    with pytest.raises(RefusedError, match="say from where pods may do so"):
        rendered(merged(LEAST, FETCHED))


def test_a_folder_needs_a_volume() -> None:
    without = merged(LEAST, {})
    without["model"] = {"source": "/models/m"}
    with pytest.raises(RefusedError, match="a folder is on a volume"):
        rendered(without)


def test_an_image_is_named_by_its_digest_where_it_has_one() -> None:
    found = rendered(merged(LEAST, {"image": {"tag": "0.1.0"}}))
    (cluster,) = (each for each in found if each["kind"] == "RayCluster")
    (worker,) = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert worker["image"] == f"registry.example/expertmesh@{DIGEST}"


def _defaults() -> Any:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def _leaves(values: Any, path: str = "") -> list[str]:
    if isinstance(values, dict) and values:
        return [leaf for key, each in values.items() for leaf in _leaves(each, f"{path}.{key}".lstrip("."))]
    return [path]


def test_rules_and_dashboard_are_those_of_monitoring() -> None:
    """In a package too, where they are files of their own."""
    by_kind = {(each["kind"], each["metadata"]["name"]): each for each in variants()["monitored"]}
    rules = yaml.safe_load((DEPLOY / "monitoring" / "expertmesh.rules.yaml").read_text())
    assert by_kind["PrometheusRule", "demo"]["spec"] == rules
    board = json.loads((DEPLOY / "monitoring" / "expertmesh.dashboard.json").read_text())
    assert json.loads(by_kind["ConfigMap", "demo-dashboard"]["data"]["expertmesh.json"]) == board
