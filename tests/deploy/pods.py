"""Objects of Kubernetes as tests look at them: the pods that they make, the containers of those."""

from collections.abc import Iterable, Iterator
from typing import Any

Object = dict[str, Any]
_WITH_TEMPLATE = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def pods(objects: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """(where, template) of every pod that these objects make."""
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "RayCluster":
            yield f"{name} head", each["spec"]["headGroupSpec"]["template"]
            for group in each["spec"].get("workerGroupSpecs") or []:
                yield f"{name} {group['groupName']}", group["template"]
        elif each["kind"] in _WITH_TEMPLATE:
            yield name, each["spec"]["template"]
        elif each["kind"] == "CronJob":
            yield name, each["spec"]["jobTemplate"]["spec"]["template"]
        elif each["kind"] == "Pod":
            yield name, each


def containers(template: Object) -> Iterator[Object]:
    """All of a pod, those that only run first among them."""
    spec = template["spec"]
    yield from spec.get("initContainers") or []
    yield from spec.get("containers") or []


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def environment(container: Object) -> dict[str, str]:
    """Variables that have a value here, and `$` for those whose value is elsewhere."""
    return {each["name"]: each.get("value", "$") for each in container.get("env") or []}
