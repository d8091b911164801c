"""S15 as a program, and what pods can hold of S14: what every pod of ours must be."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.deploy.pods import Object, containers, environment, of_kind, pods

_TOKENS = ("RAY_AUTH_TOKEN", "EXPERTMESH_API_KEY")
# Where all of a node, or another pod, would be in reach.
_SHARED_WITH_THE_NODE = ("hostNetwork", "hostPID", "hostIPC")
_OF_THE_NODE = ("/", "/etc", "/var", "/var/run", "/run", "/proc", "/sys", "/dev", "/root", "/home")
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
_SECRET_MODE = 0o440


def violations(objects: Iterable[Object]) -> list[str]:
    """What pods of these objects lack, in words."""
    objects = list(objects)
    found = [f"{where}: {each}" for where, template in pods(objects) for each in _of_pod(template)]
    found += [f"Secret {each['metadata']['name']}: is in a file" for each in of_kind(objects, "Secret")]
    return found


def _of_pod(template: Object) -> Iterator[str]:
    spec = template["spec"]
    if spec.get("automountServiceAccountToken") is not False:
        yield "has a token of a service account"
    yield from (f"{key}: shares the node's" for key in _SHARED_WITH_THE_NODE if spec.get(key))
    security = spec.get("securityContext") or {}
    numbers = ("runAsUser", "runAsGroup", "fsGroup")
    yield from (f"{key}: is root, or what the image says" for key in numbers if not security.get(key))
    if security.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    for container in containers(template):
        yield from (f"{container['name']}: {each}" for each in _of_container(container))
    yield from _of_volumes(spec.get("volumes") or [])


def _of_volumes(volumes: list[Object]) -> Iterator[str]:
    for volume in volumes:
        if "secret" in volume and volume["secret"].get("defaultMode") != _SECRET_MODE:
            yield f"secret {volume['name']}: others may read it"
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            yield f"emptyDir {volume['name']}: may fill the node's disk"
        if (volume.get("hostPath") or {}).get("path") in _OF_THE_NODE:
            yield f"hostPath {volume['name']}: is the node's own"


def _of_container(container: Object) -> Iterator[str]:
    security = container.get("securityContext") or {}
    wanted: dict[str, Callable[[Any], bool]] = {
        "allowPrivilegeEscalation": lambda value: value is False,
        "readOnlyRootFilesystem": lambda value: value is True,
        "runAsNonRoot": lambda value: value is True,
        "privileged": lambda value: not value,
        "capabilities": lambda value: value == {"drop": ["ALL"]},
        "seccompProfile": lambda value: value == {"type": "RuntimeDefault"},
        "runAsUser": lambda value: value != 0,
    }
    yield from (
        f"{key} is {security.get(key)}" for key, good in wanted.items() if not good(security.get(key))
    )
    resources = container.get("resources") or {}
    for kind in ("requests", "limits"):
        for name in ("cpu", "memory"):
            if name not in (resources.get(kind) or {}):
                yield f"has no {kind} of {name}"
    if not _DIGEST.fullmatch(container["image"]):
        yield f"image {container['image']} is not pinned by a digest"
    if any("hostPort" in port for port in container.get("ports") or []):
        yield "hostPort: is open on the node"
    values = environment(container)
    yield from (f"{name} is in the environment" for name in _TOKENS if name in values)
    if values.get("RAY_AUTH_MODE") != "token" or not values.get("RAY_AUTH_TOKEN_PATH"):
        yield "has no token of Ray's"
    if values.get("RAY_USAGE_STATS_ENABLED") != "0":
        yield "Ray's usage statistics are on"
