"""Files of compose by the schema of its specification, and what the schema does not ask for."""

from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, deployed, named, run

pytestmark = pytest.mark.deploy

COMPOSE = DEPLOY / "compose" / "compose.yaml"
CHECK = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")


@pytest.mark.parametrize("path", named(deployed("compose*.yaml", "docker-compose*.y*ml")))
def test_a_compose_file_is_one(path: Path) -> None:
    found = run(*CHECK, path)
    assert found.code == 0, found.output


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("read_only: true", "readonly: true", "readonly"),
        ("cap_drop: [ALL]", "cap_drop: ALL", "cap_drop"),
        ("restart: unless-stopped", "restart: [always]", "restart"),
        ("{internal: true}", "{internal: {}}", "internal"),
        ("ports: [", "port: [", "port"),
        ("{file: ./secrets/keys}", "{path: ./secrets/keys}", "path"),
    ],
)
def test_a_mistake_is_found(tmp_path: Path, old: str, new: str, place: str) -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "compose.yaml").write_text(text.replace(old, new), encoding="utf-8")
    found = run(*CHECK, tmp_path / "compose.yaml")
    assert found.code == 1
    assert place in found.output
