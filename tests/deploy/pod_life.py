"""How pods of ours live and end, as a program: probes, what is done before an end, how long it may take."""

from collections.abc import Iterable, Iterator
from typing import Any

from tests.deploy.pods import Object, containers, of_kind, pods

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# After a drain: 5 s for callers to read how it ended, and the ends of processes.
MARGIN = 15


def violations(objects: Iterable[Object]) -> list[str]:
    """What would lose requests, or never be reached, in words."""
    objects = list(objects)
    templates = list(pods(objects))
    found = [f"{where}: {each}" for where, template in templates for each in _of_pod(template)]
    found += [each for service in of_kind(objects, "Service") for each in _of_service(service, templates)]
    return found


def _of_pod(template: Object) -> Iterator[str]:
    spec = template["spec"]
    volumes = {volume["name"] for volume in spec.get("volumes") or []}
    mounted = {mount["name"] for each in containers(template) for mount in each.get("volumeMounts") or []}
    yield from (f"volume {name}: is mounted nowhere" for name in volumes - mounted)
    yield from (f"volume {name}: there is none" for name in mounted - volumes)
    ports = [port["name"] for each in containers(template) for port in each.get("ports") or []]
    yield from (f"port {name}: two have this name" for name in set(ports) if ports.count(name) > 1)
    for container in containers(template):
        yield from (f"{container['name']}: {each}" for each in _of_container(container))
    yield from _of_worker(spec) if _is(template, "worker") else _of_coordinator(spec)


def _of_container(container: Object) -> Iterator[str]:
    yield from (f"{probe} is missing" for probe in PROBES if probe not in container)
    places = {mount["mountPath"] for mount in container.get("volumeMounts") or []}
    yield from (
        f"{place}: is not there, or read-only"
        for place in ("/tmp", "/dev/shm", "/cache")
        if place not in places
    )
    ports = {port["containerPort"] for port in container.get("ports") or []}
    for probe in PROBES:
        for way in container.get(probe, {}).values():
            if isinstance(way, dict) and way.get("port") not in ports:
                yield f"{probe} asks at {way.get('port')}, where nothing listens"


def _of_worker(spec: Any) -> Iterator[str]:
    (container,) = spec["containers"]
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if hook[:2] != ["expertmesh", "leave"]:
        yield "does not leave before it ends"
    seconds = [float(each.partition("=")[2]) for each in hook if each.startswith("--timeout=")]
    if not seconds or spec["terminationGracePeriodSeconds"] < seconds[0] + MARGIN:
        yield "its grace is shorter than its leaving"
    rules = (spec.get("affinity", {}).get("podAntiAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution", []
    )
    if not any(
        rule["topologyKey"] == "kubernetes.io/hostname"
        and rule["labelSelector"]["matchLabels"].get("app.kubernetes.io/component") == "worker"
        for rule in rules
    ):
        yield "two copies of an expert may be on one node"


def _of_coordinator(spec: Any) -> Iterator[str]:
    (container,) = (each for each in spec["containers"] if each["name"] == "coordinator")
    options = dict(each.partition("=")[::2] for each in container["args"])
    drain = float(options["--withdrawal-grace"]) + float(options["--drain-timeout"])
    if spec["terminationGracePeriodSeconds"] < drain + MARGIN:
        yield "its grace is shorter than its drain"
    asked = {probe: container[probe].get("grpc", {}).get("service") for probe in PROBES if probe in container}
    wanted = {"startupProbe": "liveness", "livenessProbe": "liveness", "readinessProbe": ""}
    yield from (f"{probe} asks for {found!r}" for probe, found in asked.items() if found != wanted[probe])
    if not spec.get("shareProcessNamespace"):
        yield "Ray cannot see the processes of its node"
    yield from _of_ray_beside(spec)


def _of_ray_beside(spec: Any) -> Iterator[str]:
    """Ray's head begins before the coordinator and ends after it."""
    sidecars = [each for each in spec.get("initContainers") or [] if each.get("restartPolicy") == "Always"]
    if any(each["name"] == "ray-head" for each in sidecars):
        return
    head = spec["containers"][0]
    waits = str(head.get("lifecycle", {}).get("preStop", ""))
    coordinator = next(each for each in spec["containers"] if each["name"] == "coordinator")
    if head["name"] != "ray-head":
        yield "KubeRay starts Ray in the first container only"
    if "/dev/tcp/127.0.0.1/50052" not in waits:
        yield "Ray's head ends while the coordinator drains"
    if "/dev/tcp/$POD_IP/6379" not in str(coordinator.get("command")):
        yield "the coordinator does not wait for Ray"


def _of_service(service: Object, templates: list[tuple[str, Object]]) -> Iterator[str]:
    name, spec = f"Service {service['metadata']['name']}", service["spec"]
    chosen = [
        template
        for _, template in templates
        if spec["selector"].items() <= template["metadata"]["labels"].items()
    ]
    if len(chosen) != 1:
        yield f"{name}: selects {len(chosen)} kinds of pods"
    known = {
        port["name"]
        for template in chosen
        for each in containers(template)
        for port in each.get("ports") or []
    }
    yield from (
        f"{name}: no {port['targetPort']} there" for port in spec["ports"] if port["targetPort"] not in known
    )


def _is(template: Object, component: str) -> bool:
    return bool(template["metadata"]["labels"].get("app.kubernetes.io/component") == component)
