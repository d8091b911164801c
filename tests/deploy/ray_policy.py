"""S14 as a program: what every file that starts Ray must say, whatever its format.

Files are looked at as text; YAML is flattened first, so that a command may also be a list. A file stands for
itself: what it takes from elsewhere, a person who reads it cannot see. Of Helm's templates only that
counts which is rendered of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".yaml", ".yml", ".service", ".sbatch", ".sh", ".tpl")
NODE_PORTS = (
    *("node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port"),
    *("dashboard-agent-grpc-port", "dashboard-agent-listen-port", "min-worker-port", "max-worker-port"),
)
_START = re.compile(r"\bray (?:start|symmetric-run)\b.*")
_SECRET = re.compile(r"\bRAY_AUTH_TOKEN[\"']?\s*[=:]\s*[\"']?(?P<value>[^\s\"']+)")
_HEX = re.compile(r"(?<!sha256:)(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")


def files(folder: Path) -> list[Path]:
    """Those that may start something."""
    found = (path for path in folder.rglob("*") if path.is_file() and "templates" not in path.parts)
    return sorted(path for path in found if path.suffix in SUFFIXES or path.name.startswith("Dockerfile"))


def violations(text: str, *, is_yaml: bool) -> list[str]:
    """What a file lacks, in words; nothing for one that starts no Ray and holds no token."""
    flattened = list(_flattened(text)) if is_yaml else []
    texts = [_joined(text), *flattened]
    found = _secrets(texts)
    # Of YAML its values: a command's text may be one of several that belong together.
    starts = {match for each in flattened or texts for match in _starts(each)}
    clusters = [document for document in (_documents(text) if is_yaml else ()) if _is_cluster(document)]
    if not starts and not clusters:
        return found
    everything = "\n".join(texts)
    if not _is_set(everything, "RAY_AUTH_MODE", "token") and not all(map(_wants_tokens, clusters or [{}])):
        found.append("RAY_AUTH_MODE=token is missing")
    if not _is_set(everything, "RAY_USAGE_STATS_ENABLED", "0"):
        found.append("RAY_USAGE_STATS_ENABLED=0 is missing")
    for start in sorted(starts):
        found += _lacking(start, "--head" in start or "symmetric-run" in start)
    for cluster in clusters:
        for name, parameters in _parameters(cluster):
            options = " ".join(f"--{key}={value}" for key, value in parameters.items())
            found += [f"{name}: {problem}" for problem in _lacking(options, name == "headGroupSpec")]
    return found


def _lacking(command: str, is_head: bool) -> Iterator[str]:
    """Options of a start that are missing."""
    ports = (*NODE_PORTS, "port") if is_head and "symmetric-run" not in command else NODE_PORTS
    for port in ports:
        if re.search(rf"--{port}[= ][1-9$\"{{]", command) is None:
            yield f"--{port} is not pinned in: {command[:60]}"
    if is_head and re.search(r"--include-dashboard[= ][\"']?(?i:false)", command) is None:
        yield f"--include-dashboard=false is missing in: {command[:60]}"


def _joined(text: str) -> str:
    """Continued lines as one, comments away."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def _starts(text: str) -> Iterator[str]:
    """Commands; those of a list in JSON, as in a Dockerfile, too."""
    for line in text.splitlines():
        plain = re.sub(r"[\"'],\s*[\"']", " ", line)
        yield from (match.group() for match in _START.finditer(plain))


def _is_set(text: str, name: str, value: str) -> bool:
    quote = r"[\"']?"
    direct = rf"\b{name}{quote}\s*[=:]\s*{quote}{value}\b"
    listed = rf"name:\s*{quote}{name}{quote}\s*,?\s*value:\s*{quote}{value}\b"
    return re.search(direct, text) is not None or re.search(listed, text) is not None


def _secrets(texts: list[str]) -> list[str]:
    found = []
    for text in texts:
        values = [match["value"] for match in _SECRET.finditer(text)]
        values += re.findall(r"name:\s*[\"']?RAY_AUTH_TOKEN[\"']?\s*,?\s*value:\s*[\"']?(\S+)", text)
        if any(not value.startswith(("$", "{{")) for value in values) or _HEX.search(text):
            found.append("holds a token")
    return found[:1]


def _documents(text: str) -> list[Any]:
    try:
        return list(yaml.safe_load_all(text))
    except yaml.YAMLError:
        return []


def _flattened(text: str) -> Iterator[str]:
    """Every list of plain values as one line, and every value that stands alone."""
    todo = _documents(text)
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            todo += _with_whole_command(node).values()
        elif isinstance(node, list):
            if all(isinstance(item, str | int | float) for item in node):
                yield _joined(" ".join(map(str, node)))
            else:
                todo += node
        elif isinstance(node, str):
            yield _joined(node)


def _with_whole_command(node: dict[str, Any]) -> dict[str, Any]:
    """A container's command and arguments are one command."""
    command, arguments = node.get("command"), node.get("args")
    if not isinstance(command, list) or not isinstance(arguments, list):
        return node
    return {**node, "command": [*command, *arguments], "args": None}


def _is_cluster(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") == "RayCluster"


def _wants_tokens(cluster: dict[str, Any]) -> bool:
    options = (cluster.get("spec") or {}).get("authOptions") or {}
    return options.get("mode") == "token"


def _parameters(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = cluster.get("spec") or {}
    yield "headGroupSpec", (spec.get("headGroupSpec") or {}).get("rayStartParams") or {}
    for group in spec.get("workerGroupSpecs") or []:
        yield str(group.get("groupName")), group.get("rayStartParams") or {}
