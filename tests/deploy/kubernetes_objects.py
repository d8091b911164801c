"""Schemas of objects, as tests apply them: Kubernetes' by kubernetes-validate, those of operators here."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.deploy.pods import Object, pods
from tests.deploy.tools import run

SCHEMAS = Path(__file__).with_name("data")
OPERATORS = ("RayCluster", "ServiceMonitor", "PrometheusRule")
# The oldest that the chart takes, and the newest that there is.
OLDEST, NEWEST = "1.29", "1.37"


def core_errors(objects: Iterable[Object], folder: Path, version: str) -> list[str]:
    """What is wrong with objects of Kubernetes itself, and with the pods of the others."""
    objects = list(objects)
    own = [each for each in objects if each["kind"] not in OPERATORS]
    made = [
        {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "p", **template["metadata"]}}
        for _, template in pods(each for each in objects if each["kind"] in OPERATORS)
    ]
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all([*own, *made]), encoding="utf-8")
    ran = run("kubernetes-validate", "--strict", "-k", version, file)
    return [] if ran.code == 0 else ran.output.strip().splitlines()


def operator_errors(objects: Iterable[Object]) -> list[str]:
    """What is wrong with objects of operators."""
    return [
        f"{error.json_path}: {error.message[:200]}"
        for each in objects
        if each["kind"] in OPERATORS
        for error in jsonschema.Draft202012Validator(_schema(each["kind"])).iter_errors(each)
    ]


@cache
def _schema(kind: str) -> Any:
    return json.loads((SCHEMAS / f"{kind.lower()}.schema.json").read_text(encoding="utf-8"))
