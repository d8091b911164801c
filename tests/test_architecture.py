"""Which room of the house may know which: rules read from what every file imports."""

import ast
import sys
from pathlib import Path

import pytest

from tests.sources import (
    PRODUCT,
    WITHOUT_TESTS,
    files,
    found_calls,
    importers,
    imports,
)


def test_there_is_something_to_check() -> None:
    assert len(files(*PRODUCT)) > 30
    assert Path("coordinator/engine/core/engine.py") in files("coordinator")


def test_the_model_knows_nothing_of_the_rest() -> None:
    for package in ("coordinator", "expert_workers", "ray", "grpc"):
        assert importers(package, "moe_model") == {}
    # The trunk of the exception tree, and nothing else.
    assert set(importers("expertmesh", "moe_model")) == {"moe_model/errors.py"}


def test_the_client_is_light() -> None:
    """Only what its distribution depends on (client/pyproject.toml), and nothing of the server's."""
    known = {"expertmesh", "grpc", "grpc_health", "google", "rich", "argcomplete", *sys.stdlib_module_names}
    for path in files("client"):
        assert {name.partition(".")[0] for name, _ in imports(path)} <= known, path


def test_the_workers_know_no_messages() -> None:
    assert importers("expertmesh", "expert_workers") == {}


# Of the composition root, what puts workers together.
OPENERS = ("engine_side", "experts", "open_workers", "open_fleet", "planned_workers", "ray_process")


# Commands that make machines a cluster; with a server they have nothing to do.
OF_MACHINES = (
    *("cluster_arguments", "head", "head_arguments", "join", "join_arguments", "leave", "leave_arguments"),
    *("doctor", "doctor_arguments"),
)


def test_coordinator_and_workers_meet_only_in_main() -> None:
    assert importers("coordinator", "expert_workers") == {}
    found = importers("expert_workers", "coordinator")
    # The description of a worker, the transports' names, and where a Ray and a server's files are, are for
    # everyone; they are light, and lead to nothing else of the workers.
    light = tuple(
        f"expert_workers.{name}"
        for name in ("status.", "transports.table.TRANSPORTS", "cluster.place.", "cluster.own_folder.")
    )
    beyond = {path for path, names in found.items() if not all(name.startswith(light) for name in names)}
    composed = {f"coordinator/server/{name}.py" for name in OPENERS}
    assert beyond <= composed | {f"coordinator/commands/{name}.py" for name in OF_MACHINES}


HEAVY = (
    "torch",
    "numpy",
    "ray",
    "grpc",
    "google",
    "safetensors",
    "moe_model",
    "coordinator",
    "expert_workers",
)


def test_the_description_of_a_worker_is_light() -> None:
    status = Path("expert_workers/status.py")
    assert [name for name, _ in imports(status) if name.startswith(HEAVY)] == []


def test_all_experts_are_the_same_kind_of_thing() -> None:
    """Where experts are shows in who opens them; everyone else uses what RunningExperts and Workers say."""
    kinds = ("RemoteExperts", "LocalExperts", "RunningExperts", "ServedExperts", "ExpertBackend")
    asked = found_calls(
        *WITHOUT_TESTS,
        wanted=lambda name, call: (
            name in ("isinstance", "issubclass", "type", "hasattr")
            and any(kind in ast.unparse(argument) for argument in call.args for kind in kinds)
        ),
    )
    assert asked == []
    openers = {
        path
        for kind in ("expert_workers.remote_experts", "moe_model.versions.local_experts")
        for path in importers(kind, *PRODUCT)
    }
    assert openers == {"coordinator/server/open_workers.py", "moe_model/loading.py"}


# Of the room of machines, what must not be light.
STARTS_RAY = ("expert_workers/machines/node_process.py", "expert_workers/machines/node_checks.py")


def test_ray_is_in_few_files() -> None:
    rooms = ("expert_workers/transports/ray/", "expert_workers/cluster/", *STARTS_RAY)
    assert [path for path in importers("ray", *PRODUCT) if not path.startswith(rooms)] == []


@pytest.mark.parametrize("package", ["grpc", "grpc_health", "grpc_reflection", "expertmesh.v1", "google"])
def test_grpc_is_at_the_edge(package: str) -> None:
    # Ray's head speaks gRPC, and is asked before Ray connects.
    inside = {
        path for path in importers(package, *PRODUCT) if not path.startswith(("coordinator/", "client/"))
    }
    assert inside <= ({"expert_workers/cluster/ray_preflight.py"} if package == "grpc" else set())
    engine = [path for path in importers(package, "coordinator") if path.startswith("coordinator/engine/")]
    assert engine == []


def test_grpc_itself_is_in_the_grpc_files() -> None:
    allowed = (
        "coordinator/api/grpc/",
        *(f"client/expertmesh/{name}.py" for name in ("calls", "connection", "diagnosis")),
        "expert_workers/cluster/ray_preflight.py",
    )
    assert [path for path in importers("grpc", *PRODUCT) if not path.startswith(allowed)] == []


@pytest.mark.parametrize(
    ("package", "place"),
    [
        ("starlette", "coordinator/api/http/"),
        ("uvicorn", "coordinator/api/http/"),
        ("prometheus_client", "coordinator/api/telemetry/"),
        ("opentelemetry", "coordinator/api/telemetry/tracing"),
        ("jinja2", "coordinator/api/text/chat_template_main.py"),
        ("llguidance", "coordinator/structured/"),
        (
            "msgspec",
            (
                *(
                    "coordinator/engine/messages/",
                    "coordinator/engine/client/",
                    "coordinator/engine/process/",
                ),
                "coordinator/server/launcher/messages.py",
            ),
        ),
        ("cryptography", "expert_workers/machines/certificates.py"),
        ("huggingface_hub", "moe_model/checkpoint/hub.py"),
        ("fsspec", ("moe_model/remote/http_objects.py", "moe_model/remote/store_objects.py")),
        ("aiohttp", "moe_model/remote/http_objects.py"),
        ("rich", ("client/expertmesh/commands/", "coordinator/commands/")),
    ],
)
def test_a_library_has_one_place(package: str, place: str | tuple[str, ...]) -> None:
    assert [path for path in importers(package, *PRODUCT) if not path.startswith(place)] == []


def test_the_engine_knows_no_front() -> None:
    paths = [path for path in files("coordinator") if path.parts[1] == "engine"]
    for path in paths:
        bad = [n for n, _ in imports(path) if n.startswith(("coordinator.", "http")) and ".engine." not in n]
        assert [name for name in bad if not name.startswith("coordinator.metrics.")] == [], path


def test_what_is_counted_knows_neither_engine_nor_front() -> None:
    """Both count, each in its own process."""
    ours = [name for path in files("coordinator/metrics") for name, _ in imports(path)]
    known = {"coordinator", *sys.stdlib_module_names}
    assert {name for name in ours if name.partition(".")[0] not in known} == set()
    inside = [name for name in ours if name.startswith("coordinator.")]
    assert [name for name in inside if not name.startswith("coordinator.metrics.")] == []


def test_the_configuration_is_below_what_it_configures() -> None:
    """And light: a command that explains itself loads it."""
    below = (
        *("coordinator.config.", "coordinator.engine.options.", "moe_model.errors.", "moe_model.names."),
        *("expertmesh.commands.options.", "expertmesh.commands.values."),
        "expert_workers.transports.table.TRANSPORTS",
    )
    for path in files("coordinator/config"):
        ours = [name for name, _ in imports(path) if name.startswith((*(f"{room}." for room in PRODUCT),))]
        assert [name for name in ours if not name.startswith(below)] == [], path


def test_nothing_imports_tests_or_benchmarks() -> None:
    for package in ("tests", "benchmarks", "chaos", "scaling", "demo", "scripts"):
        assert importers(package, *PRODUCT) == {}


def test_chaos_sees_a_server_from_outside() -> None:
    """What breaks a server must not be it: clients, messages and commands are all that it has of ours."""
    for path in files("chaos"):
        ours = [name for name, _ in imports(path) if name.startswith(("coordinator", "expert_workers"))]
        assert [name for name in ours if not name.startswith("coordinator.commands.")] == [], path
    for package in ("ray", "torch", "grpc"):
        assert importers(package, "chaos") == {}
