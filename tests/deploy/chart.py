"""The Helm chart of deploy/helm, rendered: what tests of it look at."""

import copy
import json
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import DEPLOY, TOOLS, tool

CHART = DEPLOY / "helm" / "expertmesh"
RELEASE = "demo"
Values = dict[str, Any]
DIGEST = "sha256:" + "0" * 64
# The least that a chart can be installed with.
LEAST: Values = {
    "image": {"repository": "registry.example/expertmesh", "digest": DIGEST},
    "model": {
        "source": "/models/m",
        "volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
    },
    "secrets": {"rayToken": "ray", "apiKeys": "keys", "tls": "tls"},
}
MONITORED: Values = {
    "serviceMonitor": True,
    "prometheusRule": True,
    "dashboard": True,
    "apiKeySecret": "scraper",
    "caSecret": "ca",
    "serverName": "expertmesh.example",
}
FETCHED: Values = {"model": {"source": "s3://models/m", "volume": None}}
STORE = [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"protocol": "TCP", "port": 443}]}]
# What differs from LEAST, by name: every part of every template is in one of them.
VARIANTS: dict[str, Values] = {
    "least": {},
    "plain": {"mode": "plain"},
    "mesh": {"insecure": True, "secrets": {"apiKeys": "", "tls": ""}},
    "plain-fetched": {
        "mode": "plain",
        **FETCHED,
        "cache": {"volume": {"hostPath": {"path": "/var/cache/expertmesh"}}, "bytes": 10**11},
        "networkPolicy": {"egress": STORE},
        "secrets": {"dataTls": "data"},
    },
    "all-tls": {"secrets": {"clientCa": "clients", "dataTls": "data"}, "ray": {"mtls": True}},
    "gpu": {
        "coordinator": {
            "gpus": 1,
            "image": {"repository": "registry.example/expertmesh-cuda", "digest": DIGEST},
            "args": ["--kv-cache-mib=4096"],
            "env": [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}],
            "nodeSelector": {"gpu": "yes"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "runtimeClassName": "nvidia",
            "priorityClassName": "serving",
        },
        "workers": {"replicas": 4, "copies": 2, "nodeSelector": {"pool": "cpu"}, "leaveTimeout": 120.5},
    },
    "monitored": {"monitoring": MONITORED, "podDisruptionBudget": {"coordinator": True}},
    "plain-monitored": {"mode": "plain", "monitoring": MONITORED},
    "redis": {
        "gcsFaultTolerance": {
            "backend": "redis",
            "redisAddress": "redis.models:6379",
            "redisPassword": "redis",
        },
        "networkPolicy": {"egress": STORE},
    },
    "rocksdb": {"gcsFaultTolerance": {"backend": "rocksdb"}, "model": {"onWorkers": False}},
    "spread": {
        "workers": {
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "worker"}},
                }
            ]
        },
        "image": {"digest": "", "tag": "0.1.0", "pullSecrets": [{"name": "registry"}]},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
}


class RefusedError(Exception):
    """Helm's own words for values that a chart does not take."""


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """As Helm merges: maps by key, all else as a whole; None takes a key away."""
    out = copy.deepcopy(dict(values))
    for key in (key for key, value in changes.items() if value is None):
        out.pop(key, None)
    for key, value in ((key, value) for key, value in changes.items() if value is not None):
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def rendered(values: Values, release: str = RELEASE) -> list[Any]:
    """The objects of one release. Raises RefusedError."""
    (answer,) = _ask([{"values": values, "lint_it": False}], CHART, release)
    if "error" in answer:
        raise RefusedError(answer["error"])
    return _objects(answer["files"])


@cache
def variants() -> dict[str, list[Any]]:
    """The objects of each variant, which callers do not change."""
    jobs = [{"values": merged(LEAST, changes), "lint_it": False} for changes in VARIANTS.values()]
    answers = dict(zip(VARIANTS, _ask(jobs, CHART), strict=True))
    assert {name: each["error"] for name, each in answers.items() if "error" in each} == {}
    return {name: _objects(each["files"]) for name, each in answers.items()}


def findings(chart: Path, values: Iterable[Values]) -> list[str]:
    """What Helm's linter says of a chart under these values, but for information."""
    answers = _ask([{"values": each, "lint_it": True} for each in values], chart)
    errors = [answer["error"] for answer in answers if "error" in answer]
    found = [message for answer in answers for message in answer.get("findings", [])]
    return errors + [message["error"] for message in found if message["severity"] > 1]


def _objects(files: Mapping[str, str]) -> list[Any]:
    texts = [text for name, text in sorted(files.items()) if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def _ask(jobs: list[Values], chart: Path, release: str = RELEASE) -> list[Any]:
    # Not any other interpreter: it has the library.
    assert str(TOOLS) in tool("python")
    done = subprocess.run(
        [tool("python"), str(Path(__file__).with_name("helm_jobs.py"))],
        input=json.dumps({"chart": str(chart), "release": release, "jobs": jobs}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found
