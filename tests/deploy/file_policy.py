"""S15 as a program for files that are not Kubernetes': compose, Dockerfiles, units of systemd, scripts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

# What names an image that nobody can exchange; a variable without a default makes the user say one.
_PINNED = re.compile(r".+@sha256:[0-9a-f]{64}|\$\{\w+(:?\?[^}]*)?\}")
_SECRET_NAME = re.compile(r"\w*(TOKEN|PASSWORD|SECRET|API_KEY)$")
_LOOPBACK = ("127.0.0.1:", "[::1]:")
# A unit's settings, and which values of each are good.
_UNIT = {
    "NoNewPrivileges": ("yes", "true"),
    "CapabilityBoundingSet": ("",),
    "ProtectSystem": ("strict",),
    "ProtectHome": ("yes", "true", "tmpfs"),
    "PrivateTmp": ("yes", "true"),
    "PrivateDevices": ("yes", "true"),
    "RestrictSUIDSGID": ("yes", "true"),
    "UMask": ("0077", "077"),
}


def kind(path: Path) -> str | None:
    """Which of these rules are for a file: the name of a function here, or none."""
    if path.name.startswith("Dockerfile"):
        return "dockerfile"
    if path.suffix == ".service":
        return "unit"
    if path.suffix in (".sh", ".sbatch"):
        return "script"
    if path.suffix in (".yaml", ".yml") and re.match(r"(docker-)?compose", path.name):
        return "compose"
    return None


def violations(kind: str, text: str) -> list[str]:
    """What a file of this kind lacks, in words."""
    rules = {"compose": _compose, "dockerfile": _dockerfile, "unit": _unit, "script": _script}
    return list(rules[kind](text))


def _compose(text: str) -> Iterator[str]:
    document = yaml.safe_load(text)
    for name, service in document["services"].items():
        yield from (f"{name}: {each}" for each in _service(service))
    for name, secret in (document.get("secrets") or {}).items():
        if "environment" in secret or "content" in secret:
            yield f"secret {name}: is no file"


def _service(service: dict[str, Any]) -> Iterator[str]:
    # The one that a variable names by default is built here, or has a version.
    if not re.search(r"(@sha256:[0-9a-f]{64}|:v?\d[\w.-]*)\}?$", service.get("image", "")):
        yield f"image {service.get('image')} is of no version"
    if service.get("read_only") is not True:
        yield "read_only is not true"
    if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
        yield "has capabilities"
    if "no-new-privileges:true" not in (service.get("security_opt") or []):
        yield "may gain privileges"
    if any("unconfined" in str(each) for each in service.get("security_opt") or []):
        yield "is unconfined"
    if str(service.get("user", "0")).partition(":")[0] in ("0", "root"):
        yield "user is root, or what the image says"
    yield from (
        f"{key}: is the machine's" for key in ("privileged", "pid", "ipc", "userns_mode") if service.get(key)
    )
    if service.get("network_mode") == "host":
        yield "network_mode: is the machine's"
    limits = ((service.get("deploy") or {}).get("resources") or {}).get("limits") or {}
    yield from (f"has no limit of {key}" for key in ("cpus", "memory") if key not in limits)
    yield from (
        f"port {port} is open to others" for port in service.get("ports") or [] if not _is_local(port)
    )
    if any("docker.sock" in str(each) for each in service.get("volumes") or []):
        yield "reaches the container engine"
    variables = service.get("environment") or {}
    pairs = variables.items() if isinstance(variables, dict) else (each.split("=", 1) for each in variables)
    yield from (f"{key} is in the environment" for key, value in pairs if _SECRET_NAME.match(key) and value)


def _is_local(port: object) -> bool:
    if isinstance(port, dict):
        return port.get("host_ip") in ("127.0.0.1", "::1")
    return str(port).startswith(_LOOPBACK)


def _dockerfile(text: str) -> Iterator[str]:
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    words = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    stages = {line[3] for line in words if line[0].upper() == "FROM" and len(line) > 3}
    for line in (each for each in words if each[0].upper() == "FROM"):
        if line[1] not in stages and not _PINNED.fullmatch(line[1]):
            yield f"{line[1]} is not pinned by a digest"
    users = [line[1] for line in words if line[0].upper() == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "USER is root, or a name that Kubernetes cannot tell from it"
    for line in words:
        if line[0].upper() == "ADD" and "://" in " ".join(line):
            yield "ADD of a URL: nothing checks what comes"
        if line[0].upper() in ("ENV", "ARG"):
            pairs = [each.partition("=") for each in line[1:]]
            yield from (
                f"{key} is in the image" for key, _, value in pairs if _SECRET_NAME.match(key) and value
            )
        if re.search(r"(curl|wget)\b.*\|\s*(ba)?sh\b", " ".join(line)):
            yield "runs what it downloads"
    if "RAY_USAGE_STATS_ENABLED=0" not in " ".join(
        " ".join(line) for line in words if line[0].upper() == "ENV"
    ):
        yield "Ray's usage statistics are on"


def _unit(text: str) -> Iterator[str]:
    lines = [
        line.strip() for line in text.splitlines() if "=" in line and not line.lstrip().startswith(("#", ";"))
    ]
    settings: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition("=")
        settings.setdefault(key.strip(), []).append(value.strip())
    yield from (
        f"{key} is {settings.get(key, ['missing'])[-1]}"
        for key, good in _UNIT.items()
        if settings.get(key, ["missing"])[-1] not in good
    )
    if settings.get("DynamicUser") != ["yes"] and settings.get("User", ["root"])[-1] in ("root", "0", ""):
        yield "User is root"
    for value in settings.get("Environment", []):
        names = re.findall(r"(\w+)=\S", value)
        yield from (f"{name} is in the environment" for name in names if _SECRET_NAME.match(name))


def _script(text: str) -> Iterator[str]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    code = "\n".join(lines)
    if not re.search(r"^set -[a-z]*e[a-z]*u[a-z]*o pipefail$", code, re.MULTILINE):
        yield "set -euo pipefail is missing"
    if re.search(r"token|\.key\b", code) and not re.search(r"^\s*umask 0?77$", code, re.MULTILINE):
        yield "umask 077 is missing, and it has secrets"
    if re.search(r"--(token|api-key)[= ]", code):
        yield "a secret is on a command line"
    if re.search(r"(curl|wget)\b.*\|\s*(ba)?sh\b", code):
        yield "runs what it downloads"
    if re.search(r"chmod\s+(-R\s+)?(777|a\+w|o\+w|666)", code):
        yield "lets others write"
