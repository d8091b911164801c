"""What KubeRay's operator refuses although the schema takes it, as far as our clusters could come across it.

Read in the operator's validation of 1.7; a cluster that breaks one is created and then never runs.
"""

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.pods import Object, environment

_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_TLS = ("RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
_TLS_PLACE, _TLS_VOLUME = "/etc/ray/tls", "ray-tls"
_STORED = ("RAY_GCS_STORAGE", "RAY_GCS_STORAGE_PATH", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
_MAX_NAME = 53
# Of what is off unless an operator is started with its gate, and may then change.
_ALPHA = ("networkPolicy", "historyServerOptions")


def violations(cluster: Object) -> list[str]:
    """Why the operator would not take this cluster, in words."""
    return list(_violations(cluster["metadata"]["name"], cluster["spec"]))


def _violations(name: str, spec: Any) -> Iterator[str]:
    if len(name) > _MAX_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name}: is no DNS label of at most {_MAX_NAME} characters"
    yield from (f"{key}: needs an alpha gate" for key in _ALPHA if key in spec)
    head = spec["headGroupSpec"]
    groups = {"head": head, **{group["groupName"]: group for group in spec.get("workerGroupSpecs") or []}}
    for where, group in groups.items():
        yield from (f"{where}: {each}" for each in _of_group(group, spec))
        if where != "head" and not spec.get("enableInTreeAutoscaling"):
            numbers = {group.get(key) for key in ("replicas", "minReplicas", "maxReplicas")}
            if len(numbers) != 1 or None in numbers:
                yield f"{where}: without the autoscaler replicas, minReplicas and maxReplicas are equal"
    for where, group in groups.items():
        ports = [port["name"] for port in group["template"]["spec"]["containers"][0].get("ports") or []]
        if "metrics" not in ports:
            yield f"{where}: the operator adds a port `metrics`, which a service may find before ours"
    variables = environment(head["template"]["spec"]["containers"][0])
    yield from (f"{key}: belongs into gcsFaultToleranceOptions" for key in _STORED if key in variables)
    yield from _of_fault_tolerance(spec.get("gcsFaultToleranceOptions") or {})
    if (spec.get("authOptions") or {}).get("mode") == "token" and not _is_at_least(spec, (2, 52)):
        yield "authOptions: needs rayVersion 2.52"


def _of_group(group: Any, spec: Any) -> Iterator[str]:
    parameters = group.get("rayStartParams") or {}
    if group.get("resources") and any(key in parameters for key in _RESOURCES):
        yield "resources and rayStartParams exclude each other"
    if "labels" in parameters:
        yield "labels: belong beside rayStartParams"
    container = group["template"]["spec"]["containers"][0]
    if (spec.get("tlsOptions") or {}).get("enabled"):
        yield from (f"{key}: is set by tlsOptions" for key in _TLS if key in environment(container))
        mounts = container.get("volumeMounts") or []
        if any(each["mountPath"] == _TLS_PLACE or each["name"] == _TLS_VOLUME for each in mounts):
            yield f"{_TLS_PLACE}: is mounted by tlsOptions"


def _of_fault_tolerance(options: Any) -> Iterator[str]:
    if options.get("backend") == "rocksdb":
        yield from (f"{key}: is Redis's" for key in options if key.startswith(("redis", "external")))
    elif "storage" in options:
        yield "storage: is for rocksdb"


def _is_at_least(spec: Any, version: tuple[int, int]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", spec.get("rayVersion") or "")
    return found is not None and (int(found[1]), int(found[2])) >= version
