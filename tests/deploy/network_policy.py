"""S15's networks as a program: what no rule names is refused, both ways, and rules name peers and ports."""

from collections.abc import Iterable, Iterator
from typing import Any

from tests.deploy.pods import Object, of_kind, pods

DNS, PROBED = 53, "health"
# Ray Client's, at which code is run, and which Ray opens whatever it is told.
RAY_CLIENT = 10001
_WAYS = {"ingress": "from", "egress": "to"}


def violations(objects: Iterable[Object]) -> list[str]:
    """What is open that should not be, and what is shut that must be open, in words."""
    objects = list(objects)
    policies = [each["spec"] for each in of_kind(objects, "NetworkPolicy")]
    templates = list(pods(objects))
    found = [f"{where}: {each}" for where, template in templates for each in _of_pod(template, policies)]
    return found + [each for spec in policies for each in _of_rules(spec)]


def _of_pod(template: Object, policies: list[Any]) -> Iterator[str]:
    mine = [spec for spec in policies if _selects(spec, template["metadata"]["labels"])]
    for way in _WAYS:
        if not any(way.capitalize() in spec["policyTypes"] for spec in mine):
            yield f"{way} is not denied by default"
    if not any(port.get("port") == DNS for spec in mine for _, port in _ports(spec, "egress")):
        yield "no name can be looked up"
    if any(_is_open(spec, RAY_CLIENT) for spec in mine):
        yield f"port {RAY_CLIENT} of Ray Client is open"
    for container in template["spec"]["containers"]:
        for port in container.get("ports") or []:
            # A node may always reach its own pods.
            if port["name"] == PROBED:
                continue
            number = port["containerPort"]
            if not any(_is_open(spec, number) for spec in mine):
                yield f"port {port['name']} ({number}) is closed to all"


def _of_rules(spec: Any) -> Iterator[str]:
    for way, peers in _WAYS.items():
        for rule in spec.get(way) or []:
            if not rule.get(peers) or {} in rule[peers]:
                yield f"{way} with any peer"
            if not rule.get("ports") or any("port" not in port for port in rule["ports"]):
                yield f"{way} at any port"


def _ports(spec: Any, way: str) -> Iterator[tuple[Any, Any]]:
    for rule in spec.get(way) or []:
        yield from ((rule, port) for port in rule.get("ports") or [])


def _is_open(spec: Any, number: int) -> bool:
    ranges = [
        (port["port"], port.get("endPort", port["port"]))
        for _, port in _ports(spec, "ingress")
        if "port" in port
    ]
    return any(first <= number <= last for first, last in ranges)


def _selects(spec: Any, labels: dict[str, str]) -> bool:
    wanted = (spec.get("podSelector") or {}).get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items())
