"""The seam between fronts and engine: what either side may know of the other."""

import subprocess
import sys
from collections.abc import Collection

from tests.sources import ROOT, files, importers, imports


def test_fronts_talk_to_an_engine_in_messages() -> None:
    """So that an engine in another process is one more EngineClient."""
    seam = ("coordinator.engine.messages.", "coordinator.engine.client.base.", "coordinator.engine.options.")
    for path in files("coordinator/api"):
        inside = [name for name, _ in imports(path) if name.startswith("coordinator.engine.")]
        assert [name for name in inside if not name.startswith(seam)] == [], path


def test_messages_know_nothing_of_the_engine_that_runs_them() -> None:
    seam = ("coordinator.engine.messages.", "coordinator.engine.options.")
    for path in files("coordinator/engine/messages"):
        ours = [name for name, _ in imports(path) if name.startswith("coordinator.")]
        assert [name for name in ours if not name.startswith(seam)] == [], path
    core = [path for path in importers("coordinator.engine.client", "coordinator") if "/engine/" in path]
    seam_s_own = ("coordinator/engine/client/", "coordinator/engine/process/")
    assert [path for path in core if not path.startswith(seam_s_own)] == []


def test_only_the_server_s_folder_puts_an_engine_into_a_process() -> None:
    users = importers("coordinator.engine.process", "coordinator")
    rooms = ("coordinator/engine/process/", "coordinator/server/")
    assert [path for path in users if not path.startswith(rooms)] == []


def test_fronts_and_messages_need_no_torch() -> None:
    """A process of fronts beside the engine's is light."""
    modules = [
        ".".join(path.with_suffix("").parts)
        for path in files("coordinator/api", "coordinator/engine/messages")
        if path.name != "__init__.py" and not path.name.endswith("_main.py")
    ]
    modules += ["coordinator.engine.client.base", "coordinator.engine.process.client"]
    assert heavy_of(modules) == ""


def test_what_opens_the_fronts_is_light() -> None:
    """A process of fronts opens no checkpoint: what it must know of a model comes as a message. Traces are
    for those who ask for them; templates are rendered in processes of their own."""
    parts = ["coordinator.server.front_side", "coordinator.server.front_process"]
    assert heavy_of(parts, {*ENGINE, "opentelemetry", "jinja2"}) == ""


def test_an_engine_s_process_loads_nothing_of_fronts_nor_ray_before_it_has_workers() -> None:
    """It is started again when it has died, and callers wait for it."""
    assert heavy_of(["coordinator.server.engine_process"], {*FRONTS, "ray"}) == ""


def test_the_launcher_loads_nothing_of_the_others() -> None:
    assert heavy_of(["coordinator.commands.serve"], {*ENGINE, *FRONTS, "numpy"}) == ""


def test_the_keeper_of_ray_is_as_small_as_python() -> None:
    assert heavy_of(["expert_workers.cluster.keeper"], {*ENGINE, *FRONTS, "numpy", "asyncio"}) == ""


ENGINE = {"torch", "ray", "safetensors", "huggingface_hub"}
FRONTS = {"grpc", "starlette", "uvicorn", "opentelemetry", "prometheus_client"}


def heavy_of(modules: list[str], libraries: Collection[str] = frozenset(ENGINE)) -> str:
    """Those of the libraries that a process has loaded with these modules."""
    program = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
    program += f"print(*sorted({set(libraries)} & sys.modules.keys()), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_heavy_libraries_are_found() -> None:
    assert heavy_of(["moe_model.checkpoint.own_format"]) == "safetensors torch"
