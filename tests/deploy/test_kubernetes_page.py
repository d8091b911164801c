"""What deploy/kubernetes/README.md has a reader copy is taken by the chart and by kustomize."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import CHART, DIGEST, rendered
from tests.deploy.kubernetes_objects import NEWEST, core_errors
from tests.deploy.pods import of_kind, pods
from tests.deploy.test_kustomize import KUBERNETES, OVERLAYS, build

pytestmark = pytest.mark.deploy

PAGE = (KUBERNETES / "README.md").read_text(encoding="utf-8").replace("sha256:...", DIGEST)
PAGE = PAGE.replace("REGISTRY", "registry.example")


def _file(name: str) -> Any:
    """What the page writes into a file."""
    (text,) = re.findall(rf"cat > {re.escape(name)} <<END\n(.+?)^END$", PAGE, re.MULTILINE | re.DOTALL)
    return yaml.safe_load(text)


def _commands(word: str) -> list[list[str]]:
    lines = [line.removeprefix("$ ") for line in PAGE.splitlines() if line.startswith("$ ")]
    found = [shlex.split(line, comments=True) for line in lines if f"{word} " in line and "$(" not in line]
    return [words[words.index(word) :] for words in found if word in words]


def test_the_values_are_taken() -> None:
    assert of_kind(rendered(_file("values.yaml")), "RayCluster")
    for command in _commands("helm"):
        charts = [word for word in command if word.startswith("deploy/")]
        assert all(CHART.match(f"*/{chart}") for chart in charts)
        assert command[1] in ("upgrade", "install", "uninstall", "rollback")


def test_the_kustomization_builds(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "deploy" / "kubernetes")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(_file("mine/kustomization.yaml")))
    ran = build(tmp_path / "mine")
    assert ran.code == 0, ran.output
    assert f"registry.example/expertmesh@{DIGEST}" in ran.output


def test_every_overlay_is_in_the_table() -> None:
    named = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE))
    assert named == {name.partition("/")[2] for name in OVERLAYS} - {""}


def test_the_secrets_are_those_of_the_values() -> None:
    """Under the keys that pods read."""
    values = _file("values.yaml")
    made = {
        command[command.index("secret") + 2]
        for command in _commands("kubectl")
        if "create" in command and "secret" in command
    }
    assert set(values["secrets"].values()) == made
    assert made
    assert "--from-file=token" in PAGE
    assert "--from-file=keys" in PAGE


def test_the_service_of_two_releases_finds_coordinators(tmp_path: Path) -> None:
    (service,) = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL))
    assert core_errors([service], tmp_path, NEWEST) == []
    templates = [template for _, template in pods(rendered(_file("values.yaml"), release="blue"))]
    labels = [template["metadata"]["labels"] for template in templates]
    chosen = [each for each in labels if service["spec"]["selector"].items() <= each.items()]
    assert [each["app.kubernetes.io/component"] for each in chosen] == ["coordinator"]


def test_every_port_of_the_network_is_in_the_table() -> None:
    table = PAGE.partition("| port | pod |")[2].partition("\n\n")[0]
    named = {int(number) for number in re.findall(r"\b(\d{4,5})\b", table.replace(" to ", " "))}
    policies = of_kind(rendered(_file("values.yaml")), "NetworkPolicy")
    ports = [port for each in policies for rule in each["spec"]["ingress"] for port in rule["ports"]]
    opened = {number for port in ports for number in (port["port"], port.get("endPort", port["port"]))}
    # One rule has both kinds of workers' ports.
    assert opened <= named
