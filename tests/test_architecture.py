"""The house rules that a program can check, read from the syntax trees of every file."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.tracked import tracked

ROOT = Path(__file__).parent.parent
PRODUCT = ("client", "moe_model", "expert_workers", "coordinator")
WITHOUT_TESTS = (*PRODUCT, "benchmarks", "chaos", "demo", "scripts")
ALL = (*WITHOUT_TESTS, "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


@cache
def files(*rooms: str) -> tuple[Path, ...]:
    found = (path for room in rooms for path in (ROOT / room).rglob("*.py") if "_pb2" not in path.name)
    return tuple(sorted(path.relative_to(ROOT) for path in found))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All of a file's syntax tree, which most rules look through."""
    return tuple(ast.walk(tree(path)))


@cache
def imports(path: Path) -> tuple[tuple[str, ast.stmt], ...]:
    """The full name of every module or object that a file imports, wherever in the file."""
    found: list[tuple[str, ast.stmt]] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += ((f"{node.module}.{alias.name}", node) for alias in node.names)
    return tuple(found)


def importers(package: str, *rooms: str) -> dict[str, list[str]]:
    """Which files import a package, and what of it."""
    found: dict[str, list[str]] = {}
    for path in files(*rooms):
        names = [name for name, _ in imports(path) if name == package or name.startswith(f"{package}.")]
        if names:
            found[path.as_posix()] = names
    return found


@cache
def names(path: Path) -> tuple[tuple[str, ast.expr], ...]:
    """Every dotted name that a file uses, such as `os.environ`."""
    return tuple(
        (ast.unparse(node), node) for node in nodes(path) if isinstance(node, ast.Attribute | ast.Name)
    )


@cache
def calls(path: Path) -> tuple[tuple[str, ast.Call], ...]:
    return tuple((ast.unparse(node.func), node) for node in nodes(path) if isinstance(node, ast.Call))


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


def test_coordinator_and_workers_meet_only_in_main() -> None:
    assert importers("coordinator", "expert_workers") == {}
    found = importers("expert_workers", "coordinator")
    # The description of a worker and the transports' names are for everyone; both are light, and lead to
    # nothing else of the workers.
    light = ("expert_workers.status.", "expert_workers.transports.table.TRANSPORTS")
    beyond = {path for path, names in found.items() if not all(name.startswith(light) for name in names)}
    assert beyond <= {"coordinator/server/experts.py", "coordinator/server/open_workers.py"}


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
    asked = _found(
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


def test_ray_is_in_few_files() -> None:
    rooms = ("expert_workers/transports/ray/", "expert_workers/cluster/")
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
        *(f"client/expertmesh/{name}.py" for name in ("calls", "client", "connection", "diagnosis")),
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
        ("rich", "client/expertmesh/commands/"),
    ],
)
def test_a_library_has_one_place(package: str, place: str) -> None:
    assert [path for path in importers(package, *PRODUCT) if not path.startswith(place)] == []


def test_the_engine_knows_no_front() -> None:
    paths = [path for path in files("coordinator") if path.parts[1] == "engine"]
    for path in paths:
        bad = [n for n, _ in imports(path) if n.startswith(("coordinator.", "http")) and ".engine." not in n]
        assert bad == [], path


def test_the_configuration_is_below_what_it_configures() -> None:
    """And light: a command that explains itself loads it."""
    below = (
        *("coordinator.config.", "coordinator.engine.options.", "moe_model.errors.", "moe_model.names."),
        *("expertmesh.commands.options.", "expertmesh.commands.values."),
    )
    for path in files("coordinator/config"):
        ours = [name for name, _ in imports(path) if name.startswith((*(f"{room}." for room in PRODUCT),))]
        assert [name for name in ours if not name.startswith(below)] == [], path


def test_nothing_imports_tests_or_benchmarks() -> None:
    for package in ("tests", "benchmarks", "chaos", "demo", "scripts"):
        assert importers(package, *PRODUCT) == {}


def test_chaos_sees_a_server_from_outside() -> None:
    """What breaks a server must not be it: clients, messages and commands are all that it has of ours."""
    for path in files("chaos"):
        ours = [name for name, _ in imports(path) if name.startswith(("coordinator", "expert_workers"))]
        assert [name for name in ours if not name.startswith("coordinator.commands.")] == [], path
    for package in ("ray", "torch", "grpc"):
        assert importers(package, "chaos") == {}


def test_no_import_inside_a_function() -> None:
    inside = [
        f"{path}:{node.lineno}"
        for path in files(*ALL)
        for function in nodes(path)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inside == []


def test_modules_of_ours_are_run_from_a_path_that_is_ours() -> None:
    """Without -P a folder of the user's would come first: the one where the command is called."""
    others = {"pip", "venv", "grpc_tools.protoc"}
    unsafe = []
    for path in files(*WITHOUT_TESTS):
        for node in ast.walk(tree(path)):
            words = [ast.unparse(each).strip("'") for each in getattr(node, "elts", [])]
            if "-m" in words and "-P" not in words and words[words.index("-m") + 1] not in others:
                unsafe.append(f"{path}:{getattr(node, 'lineno', 0)}")
    assert unsafe == []


def test_lazy_loading_is_where_it_is_known() -> None:
    assert set(importers("importlib", *PRODUCT)) <= {
        "moe_model/__init__.py",
        "moe_model/families/__init__.py",
        "client/expertmesh/__init__.py",
        "client/expertmesh/cli.py",
        "client/expertmesh/command_line.py",
        "expert_workers/transports/table.py",
        *(
            path
            for path, found in importers("importlib", *PRODUCT).items()
            if set(found) == {"importlib.metadata"}
        ),
    }
    assert set(importers("runpy", *PRODUCT)) == {"coordinator/commands/chaos.py"}


ENVIRONMENT = ("os.environ", "os.getenv", "os.environb", "os.putenv", "environ", "getenv")


def test_the_environment_is_read_in_main() -> None:
    readers = {path.as_posix() for path in files(*PRODUCT) if any(n in ENVIRONMENT for n, _ in names(path))}
    # Ray takes its settings from there only, and its processes with it.
    assert readers <= {
        "coordinator/server/main.py",
        "client/expertmesh/command_line.py",
        "expert_workers/cluster/ray_environment.py",
    }


def test_torch_load_runs_no_code() -> None:
    found = []
    for path in files(*WITHOUT_TESTS):
        for name, call in calls(path):
            if name.endswith("torch.load") or name == "torch.jit.load":
                found.append(path.as_posix())
                only = [k.value for k in call.keywords if k.arg == "weights_only"]
                assert [ast.unparse(value) for value in only] == ["True"], f"{path}:{call.lineno}"
    assert set(found) <= {"moe_model/checkpoint/importer/torch_file.py"}


FORBIDDEN_CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "runs text",
    "__import__": "imports by name",
    "yaml.load": "builds objects",
    "yaml.unsafe_load": "builds objects",
    "yaml.full_load": "builds objects",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "np.load": "may unpickle",
    "numpy.load": "may unpickle",
}
FORBIDDEN_PACKAGES = ("cloudpickle", "marshal", "shelve", "dill", "joblib")
SLEEPS = ("time.sleep", "asyncio.sleep", "sleep")
# These poll what offers nothing to wait on: a server that is not there yet, a process that is not our child,
# the state of an engine that may be stuck.
POLLERS = (
    "chaos/run.py",
    "coordinator/api/shared/readiness.py",
    "client/expertmesh/client.py",
    "expert_workers/processes.py",
    "expert_workers/transports/ray/fleet.py",
    "tests/chaos/",
    "tests/coordinator/api/test_leaving.py",
    "tests/integration/",
    "tests/scenarios/",
)


def test_nothing_runs_what_it_reads() -> None:
    for package in FORBIDDEN_PACKAGES:
        assert importers(package, *PRODUCT) == {}
    # The importer names the error that torch's own restricted unpickler raises.
    assert set(importers("pickle", *PRODUCT)) <= {"moe_model/checkpoint/importer/torch_file.py"}
    uses = {
        n for n, _ in names(Path("moe_model/checkpoint/importer/torch_file.py")) if n.startswith("pickle.")
    }
    assert uses <= {"pickle.UnpicklingError"}
    assert _found(*PRODUCT, wanted=lambda name, call: name in FORBIDDEN_CALLS or _uses_a_shell(call)) == []


def test_nobody_sleeps() -> None:
    found = _found(*PRODUCT, "chaos", "tests", wanted=lambda name, _: name in SLEEPS)
    assert [place for place in found if not place.startswith(POLLERS)] == []


def _uses_a_shell(call: ast.Call) -> bool:
    return any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords)


def _found(*rooms: str, wanted: Callable[[str, ast.Call], bool]) -> list[str]:
    return [
        f"{path}:{call.lineno}: {name}"
        for path in files(*rooms)
        for name, call in calls(path)
        if wanted(name, call)
    ]


def test_only_commands_print() -> None:
    printing = _found(*PRODUCT, wanted=lambda name, _: name == "print")
    assert [place for place in printing if "/commands/" not in place] == []


def test_files_are_short() -> None:
    lengths = {p.as_posix(): len((ROOT / p).read_text(encoding="utf-8").splitlines()) for p in files(*ALL)}
    assert {path: n for path, n in lengths.items() if n >= MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{path}:{node.lineno}: {node.name}"
        for path in files(*PRODUCT, "chaos")
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_module_says_what_it_is() -> None:
    silent = [str(p) for p in files(*WITHOUT_TESTS) if tree(p).body and ast.get_docstring(tree(p)) is None]
    assert silent == []


def test_only_a_threads_top_catches_everything() -> None:
    """Each one is marked for ruff with its reason, or logs with its trace."""
    bad = []
    for path in files(*PRODUCT):
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler) and _catches_all(node):
                body = ast.unparse(node)
                if "BLE001" not in lines[node.lineno - 1] and not _has_trace(body) and not _raises(node):
                    bad.append(f"{path}:{node.lineno}")
    assert bad == []


def _catches_all(node: ast.ExceptHandler) -> bool:
    return node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")


def _has_trace(body: str) -> bool:
    return ".exception(" in body or "exc_info" in body


def _raises(node: ast.ExceptHandler) -> bool:
    return isinstance(node.body[-1], ast.Raise)


def test_no_path_of_a_machine_is_in_a_file() -> None:
    marks = ["/" + "work/", "/" + "home/", "/" + "root/"]
    found = []
    for path in tracked(".py", ".md", ".toml", ".yaml", ".txt", ".proto", ""):
        if not path.is_symlink():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {mark}" for mark in marks if mark in text]
    assert found == []
