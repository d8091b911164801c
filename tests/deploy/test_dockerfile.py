"""deploy/docker/Dockerfile by hadolint, and what hadolint does not ask."""

import re
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, ROOT, deployed, named, run

pytestmark = pytest.mark.deploy

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
TARGETS = ("cpu", "cuda")


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


# What there must be, and what there must not be, by the problem that it is otherwise.
_MUST = {
    "the base has no tag": r"^ARG DEBIAN_IMAGE=\S+:\S+$",
    "tini is not the first process": r'^ENTRYPOINT \["tini", "--", "expertmesh"\]$',
    "no health check by expertmesh": r'^HEALTHCHECK .*\\\n    CMD .*"exec expertmesh health ',
    **{
        f"{target}: not user 10001": rf"^FROM \S+ AS {target}\n(?:(?!FROM).*\n)*USER 10001:10001\n"
        for target in TARGETS
    },
}
_MUST_NOT = {
    "kernels of one processor": r"^(?!#).*-m(arch|tune)=",
    "a secret in a layer": r"^(ARG|ENV) \S*(TOKEN|KEY|SECRET|PASSWORD)\b",
    "versions without a pin": r"pip install (?!--constraint constraints\.txt)",
}


def problems(text: str) -> list[str]:
    """What hadolint lets pass."""
    found = [problem for problem, must in _MUST.items() if not re.search(must, text, re.MULTILINE)]
    found += [problem for problem, wrong in _MUST_NOT.items() if re.search(wrong, text, re.MULTILINE)]
    if bases := set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - {"${DEBIAN_IMAGE}", *_names(text)}:
        found.append(f"bases that no argument names: {bases}")
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
