"""What the rules, their tests, the dashboard and the page say of each other, without Prometheus' tools."""

import json
import re
from collections import Counter
from typing import Any

import pytest
import yaml

from coordinator.api.shared.errors import Reason
from coordinator.api.telemetry.requests import FAULTS
from expert_workers.status import WorkerState
from expert_workers.transports.base import FailureReason
from tests.coordinator.api.telemetry.test_names import EXPECTED
from tests.deploy.monitoring import DASHBOARD, MONITORING, RULES, TESTS, alerts, metrics_of, panels, rules

# What Prometheus itself puts in, and what it knows without us.
TARGET_LABELS = {"job", "instance"}
OTHER_METRICS = {"up", "ALERTS"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def shown() -> dict[str, set[str]]:
    """The names of all samples that a server shows, and the labels of each."""
    return {
        name + suffix: labels | ({"le"} if suffix == "_bucket" else set()) | TARGET_LABELS
        for name, (kind, labels) in EXPECTED.items()
        for suffix in SUFFIXES[kind]
    }


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description"}
    assert alert["alert"].startswith("ExpertMesh")
    page = (MONITORING / "README.md").read_text(encoding="utf-8")
    assert page.count(f"| `{alert['alert']}` |") == 1, "a row in README.md"


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_names_labels_that_its_series_have(alert: dict[str, Any]) -> None:
    text = " ".join(alert["annotations"].values())
    names = [name for name in metrics_of(alert["expr"]) if name in shown()]
    known = set.intersection(*(shown()[name] for name in names)) if names else TARGET_LABELS
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= known | ({"model_name"} if not names else set())


def test_every_alert_is_tested_before_during_and_after() -> None:
    """Silent, then firing, then silent, at three times in this order in one of its tests."""
    proven = set()
    for test in yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]:
        (name,) = {re.findall(r'alertname="(\w+)"', each["expr"])[0] for each in test["promql_expr_test"]}
        assert test["name"].startswith(f"{name}: ")
        fires = "".join("1" if each["exp_samples"] else "0" for each in test["promql_expr_test"])
        if re.fullmatch("0+1+0+", fires):
            proven.add(name)
    assert proven == {alert["alert"] for alert in alerts()}


def test_names_are_used_once() -> None:
    names = Counter(rule.get("alert") or rule["record"] for rule in rules())
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in rules()), *dict.fromkeys(panels())])
def test_every_metric_that_is_asked_for_is_one_of_ours(expression: str) -> None:
    names = metrics_of(expression)
    assert names, expression
    assert names <= {*shown(), *recorded(), *OTHER_METRICS}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_values_of_labels_that_are_asked_for_are_ours(rule: dict[str, Any]) -> None:
    known = {"job": {"expertmesh"}, "reason": {*Reason, *FailureReason}, "state": {*WorkerState}}
    for label, values in re.findall(r'(\w+)=~?"([^"]+)"', rule["expr"]):
        assert set(values.split("|")) <= known[label]


def test_requests_that_fail_through_no_fault_of_callers_are_those_that_metrics_know() -> None:
    (rule,) = (
        rule for rule in rules() if rule.get("record", "").startswith("instance:expertmesh_requests_failed")
    )
    (reasons,) = re.findall(r'reason=~"([^"]+)"', rule["expr"])
    assert set(reasons.split("|")) == FAULTS


def test_what_is_recorded_is_used() -> None:
    used = set.union(*(metrics_of(each) for each in [*(r["expr"] for r in rules()), *panels()]))
    assert recorded() <= used


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Its own fields, units, legends, and no data source of anybody's: a person chooses it."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert board["uid"] == "expertmesh"
    assert board["id"] is None
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {"job", "instance"} <= set(variables)
    drawn = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in drawn:
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            assert 'job="$job"' in target["expr"], panel["title"]
            assert 'instance=~"$instance"' in target["expr"], panel["title"]


def test_panels_do_not_overlap() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_files_are_where_others_look_for_them() -> None:
    assert sorted(path.name for path in MONITORING.glob("*.rules.yaml")) == [RULES.name]
