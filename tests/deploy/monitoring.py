"""The files of deploy/monitoring, as far as tests look into them."""

import json
import re
from functools import cache
from typing import Any

import yaml

from tests.deploy.tools import DEPLOY

MONITORING = DEPLOY / "monitoring"
RULES = MONITORING / "expertmesh.rules.yaml"
TESTS = MONITORING / "expertmesh.rules.test.yaml"
DASHBOARD = MONITORING / "expertmesh.dashboard.json"

# Names of PromQL that are no function, keyword or label.
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"")
_LABELS = re.compile(r"\{[^}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w:.])[a-zA-Z_][\w:]*(?!\s*\()(?![\w:])")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"}


@cache
def rules() -> tuple[dict[str, Any], ...]:
    """All rules, in their order."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return tuple(rule for group in groups for rule in group["rules"])


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels() -> list[str]:
    """What the dashboard's panels ask for, with Grafana's variables in it."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def metrics_of(expression: str) -> set[str]:
    """The names of the series that an expression of PromQL asks for."""
    plain = _LABELS.sub("", _STRING.sub('""', expression))
    plain = re.sub(r"\[[^\]]*\]", "", plain)
    return {name for name in _NAME.findall(plain) if name not in _WORDS}
