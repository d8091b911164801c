"""The files of deploy/monitoring by promtool: configurations, rules, and what each alert does in time."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring import MONITORING, RULES, TESTS, alerts
from tests.deploy.tools import named, run

pytestmark = pytest.mark.deploy

CONFIGS = sorted(MONITORING.glob("prometheus*.yml"))


def config_in(folder: Path, path: Path, old: str = "", new: str = "") -> Path:
    """A configuration whose files are there, for promtool looks for them; with a mistake in it."""
    for name in ("metrics_key", "ca.pem"):
        (folder / name).touch()
    (folder / RULES.name).write_bytes(RULES.read_bytes())
    text = path.read_text(encoding="utf-8")
    assert old in text
    config = yaml.safe_load(text.replace(old, new).replace("/run/secrets/", f"{folder}/"))
    for scrape in config["scrape_configs"]:
        # Debian builds Prometheus without this one; the test below looks at it.
        scrape.pop("kubernetes_sd_configs", None)
    (folder / path.name).write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / path.name


@pytest.mark.parametrize("path", named(CONFIGS))
def test_a_configuration_is_taken(tmp_path: Path, path: Path) -> None:
    found = run("promtool", "check", "config", config_in(tmp_path, path))
    assert found.code == 0, found.output
    assert "rules found" in found.output


@pytest.mark.parametrize("path", named(CONFIGS))
@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("scheme: https", "schema: https", "field schema not found"),
        ("credentials_file: ", "credentials_file: /nowhere", "no such file"),
        ("expertmesh.rules.yaml", "others.rules.yaml", "does not point to an existing file"),
        ("scrape_interval: 15s", "scrape_interval: 15", "duration"),
    ],
)
def test_a_mistake_of_a_configuration_is_found(
    tmp_path: Path, path: Path, old: str, new: str, finding: str
) -> None:
    found = run("promtool", "check", "config", config_in(tmp_path, path, old, new))
    assert found.code != 0
    assert finding in found.output


def test_pods_are_looked_for_as_prometheus_wants_it() -> None:
    """The part that Debian's promtool does not know."""
    (path,) = (path for path in CONFIGS if "kubernetes" in path.name)
    (scrape,) = yaml.safe_load(path.read_text(encoding="utf-8"))["scrape_configs"]
    (found,) = scrape["kubernetes_sd_configs"]
    assert found == {
        "role": "pod",
        "selectors": [{"role": "pod", "label": "app.kubernetes.io/name=expertmesh"}],
    }


def test_rules_are_taken() -> None:
    found = run("promtool", "check", "rules", "--lint-fatal", RULES)
    assert found.code == 0, found.output


@pytest.mark.parametrize(
    ("old", "new"),
    [("for: 1m", "for: soon"), ("histogram_quantile(0.95,", "quantile("), ("{{ $value", "{{ $valeu")],
)
def test_a_mistake_of_a_rule_is_found(tmp_path: Path, old: str, new: str) -> None:
    text = RULES.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "a.rules.yaml").write_text(text.replace(old, new), encoding="utf-8")
    assert run("promtool", "check", "rules", tmp_path / "a.rules.yaml").code != 0


def test_each_alert_stays_silent_fires_and_resolves() -> None:
    found = run("promtool", "test", "rules", TESTS)
    assert found.code == 0, found.output


def never(alert: dict[str, Any]) -> None:
    alert["expr"] = "vector(1) == 0"


def always(alert: dict[str, Any]) -> None:
    alert["expr"] = "vector(1)"
    alert.pop("for", None)


def at_once(alert: dict[str, Any]) -> None:
    alert.pop("for", None)


def hours_later(alert: dict[str, Any]) -> None:
    alert["for"] = "9h"


@pytest.mark.parametrize(
    ("change", "is_changed"),
    [
        (never, lambda alert: True),
        (always, lambda alert: True),
        (at_once, lambda alert: "for" in alert),
        (hours_later, lambda alert: True),
    ],
)
def test_the_tests_find_every_alert_that_acts_otherwise(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], is_changed: Callable[[dict[str, Any]], bool]
) -> None:
    rules = copy.deepcopy(yaml.safe_load(RULES.read_text(encoding="utf-8")))
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                change(rule)
    (tmp_path / RULES.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    (tmp_path / TESTS.name).write_bytes(TESTS.read_bytes())
    found = run("promtool", "test", "rules", tmp_path / TESTS.name)
    assert found.code != 0
    wrong = set(re.findall(r'alertname=\\"(\w+)\\"', found.output))
    assert wrong == {alert["alert"] for alert in alerts() if is_changed(alert)}
