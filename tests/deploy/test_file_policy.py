"""Every file of deploy/ keeps S15, as far as its kind can; and files that do not would be found."""

from pathlib import Path

import pytest
import yaml

from tests.deploy import file_policy, network_policy, pod_policy
from tests.deploy.tools import DEPLOY, deployed, named

DIGEST = "sha256:" + "0a" * 32
COMPOSE = """
services:
  one:
    image: x:1.2
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    user: "10001:10001"
    ports: ["127.0.0.1:8000:8000"]
    environment: {RAY_AUTH_TOKEN_PATH: /run/secrets/token}
    deploy: {resources: {limits: {cpus: "2", memory: 4g}}}
    volumes: ["models:/models:ro"]
secrets:
  token: {file: ./token}
"""
DOCKERFILE = f"""
ARG BASE
FROM python@{DIGEST} AS build
RUN pip install x
FROM ${{BASE}} AS base
ENV RAY_USAGE_STATS_ENABLED=0
FROM base AS last
USER 10001:10001
"""
UNIT = """
[Service]
User=expertmesh
UMask=0077
Environment=RAY_AUTH_TOKEN_PATH=%d/token
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictSUIDSGID=yes
"""
SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
umask 077
openssl rand -hex 32 > token
expertmesh join head:6380 --token-file token
"""
GOOD = {"compose": COMPOSE, "dockerfile": DOCKERFILE, "unit": UNIT, "script": SCRIPT}
FILES = [path for path in deployed("*") if file_policy.kind(path) is not None]


def test_there_are_files_to_check() -> None:
    assert len(FILES) >= 2


@pytest.mark.parametrize("path", named(FILES))
def test_what_is_deployed_keeps_the_policy(path: Path) -> None:
    kind = file_policy.kind(path)
    assert kind is not None
    assert file_policy.violations(kind, path.read_text(encoding="utf-8")) == []


def test_the_base_of_kubernetes_keeps_it() -> None:
    """What `make check-deploy` looks at when it is rendered, here as it is committed."""
    text = (DEPLOY / "kubernetes" / "base" / "expertmesh.yaml").read_text(encoding="utf-8")
    objects = [each for each in yaml.safe_load_all(text) if each]
    assert len(objects) > 5
    assert pod_policy.violations(objects) == []
    assert network_policy.violations(objects) == []


@pytest.mark.parametrize("kind", GOOD)
def test_what_keeps_it_is_let_through(kind: str) -> None:
    assert file_policy.violations(kind, GOOD[kind]) == []


MISTAKES = [
    ("compose", "image: x:1.2", "image: x:latest", "x:latest is of no version"),
    ("compose", "image: x:1.2", "image: x", "x is of no version"),
    ("compose", "read_only: true", "read_only: false", "read_only is not true"),
    ("compose", "cap_drop: [ALL]", "cap_drop: [NET_RAW]", "has capabilities"),
    ("compose", "cap_drop: [ALL]", "cap_drop: [ALL]\n    cap_add: [SYS_PTRACE]", "has capabilities"),
    ("compose", "no-new-privileges:true", "no-new-privileges:false", "may gain privileges"),
    (
        "compose",
        '"no-new-privileges:true"',
        '"no-new-privileges:true", "seccomp=unconfined"',
        "is unconfined",
    ),
    ("compose", '"10001:10001"', '"0:10001"', "user is root"),
    ("compose", '    user: "10001:10001"\n', "", "user is root"),
    ("compose", "read_only: true", "read_only: true\n    privileged: true", "privileged: is the machine's"),
    ("compose", "read_only: true", "read_only: true\n    pid: host", "pid: is the machine's"),
    ("compose", "read_only: true", "read_only: true\n    network_mode: host", "network_mode"),
    ("compose", ", memory: 4g", "", "has no limit of memory"),
    ("compose", 'cpus: "2", ', "", "has no limit of cpus"),
    ("compose", "127.0.0.1:8000:8000", "8000:8000", "port 8000:8000 is open to others"),
    ("compose", "models:/models:ro", "/run/docker.sock:/run/docker.sock", "reaches the container engine"),
    ("compose", "RAY_AUTH_TOKEN_PATH: /", "RAY_AUTH_TOKEN: /", "RAY_AUTH_TOKEN is in the environment"),
    ("compose", "{file: ./token}", "{environment: TOKEN}", "secret token: is no file"),
    ("dockerfile", f"python@{DIGEST}", "python:3.12", "python:3.12 is not pinned"),
    ("dockerfile", "${BASE}", "${BASE:-python:3.12}", "is not pinned"),
    ("dockerfile", "USER 10001:10001", "USER root", "USER is root"),
    ("dockerfile", "USER 10001:10001", "USER 0", "USER is root"),
    ("dockerfile", "USER 10001:10001\n", "", "USER is root"),
    ("dockerfile", "RUN pip install x", "ADD https://x.example/y /y", "ADD of a URL"),
    ("dockerfile", "RUN pip install x", "RUN curl https://x.example | sh", "runs what it downloads"),
    ("dockerfile", "RUN pip install x", "ENV RAY_AUTH_TOKEN=x", "RAY_AUTH_TOKEN is in the image"),
    ("dockerfile", "ENV RAY_USAGE_STATS_ENABLED=0", "ENV X=0", "usage statistics are on"),
    ("unit", "User=expertmesh", "User=root", "User is root"),
    ("unit", "User=expertmesh\n", "", "User is root"),
    ("unit", "UMask=0077", "UMask=0022", "UMask is 0022"),
    ("unit", "RAY_AUTH_TOKEN_PATH=%d/token", "RAY_AUTH_TOKEN=x", "RAY_AUTH_TOKEN is in the environment"),
    ("unit", "CapabilityBoundingSet=", "CapabilityBoundingSet=CAP_NET_RAW", "CapabilityBoundingSet is CAP"),
    ("unit", "ProtectSystem=strict", "# ProtectSystem=strict", "ProtectSystem is missing"),
    *(
        ("unit", f"{key}=yes", f"{key}=no", f"{key} is no")
        for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictSUIDSGID")
    ),
    ("script", "set -euo pipefail", "set -e", "set -euo pipefail is missing"),
    ("script", "umask 077", "umask 022", "umask 077 is missing"),
    ("script", "--token-file token", "--token $(cat token)", "a secret is on a command line"),
    ("script", "umask 077", "umask 077\nwget -O - https://x.example | bash", "runs what it downloads"),
    ("script", "umask 077", "umask 077\nchmod -R 777 .", "lets others write"),
]


@pytest.mark.parametrize(("kind", "old", "new", "problem"), MISTAKES)
def test_a_mistake_is_found(kind: str, old: str, new: str, problem: str) -> None:
    assert old in GOOD[kind]
    found = file_policy.violations(kind, GOOD[kind].replace(old, new))
    assert any(problem in each for each in found), found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("docker/Dockerfile", "dockerfile"),
        ("systemd/expertmesh-head.service", "unit"),
        ("slurm/expertmesh.sbatch", "script"),
        ("compose/secrets.sh", "script"),
        ("compose/compose.yaml", "compose"),
        ("monitoring/prometheus.yml", None),
        ("kubernetes/base/expertmesh.yaml", None),
    ],
)
def test_a_file_has_the_rules_of_its_kind(name: str, kind: str | None) -> None:
    assert file_policy.kind(Path(name)) == kind
