"""deploy/ray-up/cluster-local.yaml by Ray's own schema, filled with its defaults as `ray up` does."""

from collections.abc import Callable
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.tools import DEPLOY

pytestmark = pytest.mark.deploy

FILE = DEPLOY / "ray-up" / "cluster-local.yaml"


def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def test_ray_takes_it() -> None:
    prepared = prepare_config(cluster())
    validate_config(prepared)
    (nodes,) = prepared["available_node_types"].values()
    # Every machine that is named, and none that comes or goes.
    assert nodes["min_workers"] == nodes["max_workers"] == len(cluster()["provider"]["worker_ips"])


def misspell(config: dict[str, Any]) -> None:
    config["worker_start_commands"] = config.pop("worker_start_ray_commands")


def make_text(config: dict[str, Any]) -> None:
    config["head_start_ray_commands"] = "ray start"


def forget_provider(config: dict[str, Any]) -> None:
    del config["provider"]["type"]


def forget_head(config: dict[str, Any]) -> None:
    del config["provider"]["head_ip"]


@pytest.mark.parametrize("mistake", [misspell, make_text, forget_provider, forget_head])
def test_a_mistake_is_found(mistake: Callable[[dict[str, Any]], None]) -> None:
    config = cluster()
    mistake(config)
    with pytest.raises((jsonschema.ValidationError, KeyError, click.ClickException)):
        validate_config(prepare_config(config))


def test_a_token_is_the_same_file_everywhere_and_closed() -> None:
    config = cluster()
    (target,) = config["file_mounts"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert f"RAY_AUTH_TOKEN_PATH={target} " in commands[-1]
    assert any(f"chmod 600 {target}" in command for command in config["setup_commands"])
