"""deploy/docker/Dockerfile by hadolint, and what hadolint does not ask."""

import re
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, ROOT, deployed, named, run

pytestmark = pytest.mark.deploy

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
TARGETS = ("cpu", "cuda")


def stages() -> dict[str, str]:
    """Each stage's text by its name."""
    parts = re.split(r"^(?=FROM )", TEXT, flags=re.MULTILINE)[1:]
    return {re.findall(r"^FROM \S+(?: AS (\S+))?", part)[0]: part for part in parts}


@pytest.mark.parametrize("path", named(deployed("Dockerfile*")))
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    found = run("hadolint", path)
    assert (found.code, found.output) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("# hadolint ignore=DL3008\nRUN apt-get update && \\\n    apt-get", "RUN apt-get", "DL3008"),
        (" --no-install-recommends", "", "DL3015"),
        ("WORKDIR /source", "WORKDIR source", "DL3000"),
        ("USER 10001:10001\n", "USER root\n", "DL3002"),
    ],
)
def test_a_mistake_is_found(tmp_path: Path, old: str, new: str, finding: str) -> None:
    assert old in TEXT
    (tmp_path / "Dockerfile").write_text(TEXT.replace(old, new))
    found = run("hadolint", tmp_path / "Dockerfile")
    assert found.code == 1
    assert finding in found.output


def problems(text: str) -> list[str]:
    """What hadolint lets pass."""
    found = []
    if not re.search(r"^ARG DEBIAN_IMAGE=\S+:\S+$", text, re.MULTILINE):
        found.append("the base has no tag")
    if bases := set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - {"${DEBIAN_IMAGE}", *_names(text)}:
        found.append(f"bases that no argument names: {bases}")
    for target in TARGETS:
        if not re.search(rf"^FROM \S+ AS {target}\n(?:(?!FROM).*\n)*USER 10001:10001\n", text, re.MULTILINE):
            found.append(f"{target}: not user 10001")
    if not re.search(r'^ENTRYPOINT \["tini", "--", "expertmesh"\]$', text, re.MULTILINE):
        found.append("tini is not the first process")
    if not re.search(r'^HEALTHCHECK .*\\\n    CMD .*"exec expertmesh health ', text, re.MULTILINE):
        found.append("no health check by expertmesh")
    if re.search(r"-march=|-mtune=", text.replace("no -march", "")):
        found.append("kernels of one processor")
    if re.search(r"^(ARG|ENV) \S*(TOKEN|KEY|SECRET|PASSWORD)\b", text, re.MULTILINE):
        found.append("a secret in a layer")
    if not all("--constraint constraints.txt" in line for line in re.findall(r"pip install .*", text)):
        found.append("versions without a pin")
    return found


def _names(text: str) -> set[str]:
    return set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))


def test_the_image_keeps_the_policy() -> None:
    assert problems(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("debian:12-slim\n", "debian\n", "the base has no tag"),
        ("FROM ${DEBIAN_IMAGE} AS base", "FROM python:3.11 AS base", "bases that no argument names"),
        ("USER 10001:10001\n", "USER root\n", "cuda: not user 10001"),
        ('["tini", "--", "expertmesh"]', '["expertmesh"]', "tini is not the first"),
        ("expertmesh health", "true", "no health check"),
        ("RUN python3 -m venv", "ENV CFLAGS=-march=native\nRUN python3 -m venv", "kernels of one processor"),
        ("RUN python3 -m venv", "ARG HF_TOKEN\nRUN python3 -m venv", "a secret in a layer"),
        ("pip install --constraint constraints.txt ./client", "pip install ./client", "versions without"),
    ],
)
def test_what_breaks_the_policy_is_found(old: str, new: str, problem: str) -> None:
    assert old in TEXT
    assert any(each.startswith(problem) for each in problems(TEXT.replace(old, new)))


def test_the_context_has_what_is_built_and_nothing_else() -> None:
    """What is ignored is what is not named, so that a key beside the sources never gets in."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    named_paths = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert all((ROOT / path).exists() for path in named_paths)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(named_paths)
    assert {"deploy", "tests", ".git", "docs"} & set(named_paths) == set()
