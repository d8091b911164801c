"""Every file of deploy/ that starts Ray keeps the policy; and files that do not would be found."""

from pathlib import Path

import pytest

from tests.deploy.ray_policy import NODE_PORTS, files, violations

DEPLOY = Path(__file__).parents[2] / "deploy"
PORTS = " ".join(f"--{name}={number}" for number, name in enumerate(NODE_PORTS, 10001))
HEAD = f"ray start --head --block --port=6379 --include-dashboard=false {PORTS}"
WORKER = f"ray start --address=HEAD:6379 --block {PORTS}"
SERVICE = f"""
[Service]
Environment=RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=%d/token
Environment=RAY_USAGE_STATS_ENABLED=0
ExecStart={HEAD}
"""
COMPOSE = f"""
services:
  head:
    environment:
      RAY_AUTH_MODE: token
      RAY_AUTH_TOKEN_PATH: /run/secrets/ray_token
      RAY_USAGE_STATS_ENABLED: "0"
    command: {str(HEAD.split()).replace("'", '"')}
"""
SCRIPT = f"""
#SBATCH --nodes=2
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/token
export RAY_USAGE_STATS_ENABLED=0
srun {HEAD.replace("--block", chr(92) + chr(10) + "  --block")} &
srun {WORKER} &
"""
DOCKERFILE = f"""
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
CMD {str(HEAD.split()).replace("'", '"')}
"""
PARAMETERS = "".join(f'\n        {name}: "{number}"' for number, name in enumerate(NODE_PORTS, 10001))
CLUSTER = f"""
apiVersion: ray.io/v1
kind: RayCluster
spec:
  authOptions: {{mode: token}}
  headGroupSpec:
      rayStartParams:
        port: "6379"
        include-dashboard: "false"{PARAMETERS}
      template:
        spec:
          containers:
          - env:
            - name: RAY_USAGE_STATS_ENABLED
              value: "0"
  workerGroupSpecs:
    - groupName: workers
      rayStartParams:{PARAMETERS}
"""
GOOD = {
    "service": (SERVICE, False),
    "compose": (COMPOSE, True),
    "sbatch": (SCRIPT, False),
    "Dockerfile": (DOCKERFILE, False),
    "RayCluster": (CLUSTER, True),
    "no Ray": ("kind: Service\nspec: {ports: [6379]}\n", True),
    "a digest": (f"image: x@sha256:{'a' * 64}\n", True),
    "a reference": ("RAY_AUTH_TOKEN=$(cat token)\n", False),
    "a template": ("{{- if .Values.x }}\nkind: ConfigMap\n{{- end }}\n", True),
}


@pytest.mark.parametrize("path", files(DEPLOY) or [None], ids=str)
def test_what_is_deployed_keeps_the_policy(path: Path | None) -> None:
    if path is not None:
        text = path.read_text(encoding="utf-8")
        assert violations(text, is_yaml=path.suffix in (".yaml", ".yml")) == []


@pytest.mark.parametrize("name", GOOD)
def test_what_keeps_it_is_let_through(name: str) -> None:
    text, is_yaml = GOOD[name]
    assert violations(text, is_yaml=is_yaml) == []


@pytest.mark.parametrize("name", ["service", "compose", "sbatch", "Dockerfile"])
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("RAY_AUTH_MODE", "RAY_OTHER_MODE", "RAY_AUTH_MODE=token is missing"),
        ("token", "disabled", "RAY_AUTH_MODE=token is missing"),
        ("RAY_USAGE_STATS_ENABLED", "RAY_OTHER", "RAY_USAGE_STATS_ENABLED=0 is missing"),
        ("--include-dashboard=false", "--include-dashboard=true", "--include-dashboard=false is missing"),
        ("--include-dashboard=false", "--block", "--include-dashboard=false is missing"),
        ("--port=6379", "--block", "--port is not pinned"),
        ("--port=6379", "--port=0", "--port is not pinned"),
        ("--node-manager-port=", "--x=", "--node-manager-port is not pinned"),
        ("--max-worker-port=", "--x=", "--max-worker-port is not pinned"),
    ],
)
def test_what_is_left_out_is_found(name: str, old: str, new: str, problem: str) -> None:
    text, is_yaml = GOOD[name]
    assert old in text
    found = violations(text.replace(old, new), is_yaml=is_yaml)
    assert any(problem in each for each in found), found


def test_a_comment_is_no_setting() -> None:
    text = SERVICE.replace("Environment=RAY_AUTH_MODE", "# Environment=RAY_AUTH_MODE")
    assert violations(text, is_yaml=False) == ["RAY_AUTH_MODE=token is missing"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("mode: token", "mode: disabled", "RAY_AUTH_MODE=token is missing"),
        ("authOptions", "others", "RAY_AUTH_MODE=token is missing"),
        (
            'include-dashboard: "false"',
            'include-dashboard: "true"',
            "headGroupSpec: --include-dashboard=false",
        ),
        ("RAY_USAGE_STATS_ENABLED", "RAY_OTHER", "RAY_USAGE_STATS_ENABLED=0 is missing"),
        ("object-manager-port", "other", "workers: --object-manager-port is not pinned"),
    ],
)
def test_a_ray_cluster_of_kubernetes(old: str, new: str, problem: str) -> None:
    found = violations(CLUSTER.replace(old, new), is_yaml=True)
    assert any(each.startswith(problem) for each in found), found


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_TOKEN=0123456789abcdef",
        "      RAY_AUTH_TOKEN: hunter2",
        'Environment="RAY_AUTH_TOKEN=x"',
        "- name: RAY_AUTH_TOKEN\n  value: x",
        "echo " + "0a" * 32,
    ],
)
def test_a_token_is_found_wherever_it_stands(line: str) -> None:
    for is_yaml in (False, True):
        assert violations(line, is_yaml=is_yaml) == ["holds a token"]


def test_files_are_found_by_their_kind(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    for name in ("docker/Dockerfile", "a.yaml", "b.sbatch", "c.service", "d.sh", "README.md"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in files(tmp_path)] == [
        "a.yaml",
        "b.sbatch",
        "c.service",
        "d.sh",
        "Dockerfile",
    ]
