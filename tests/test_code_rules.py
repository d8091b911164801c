"""The rules of the code inside of a file, read from the syntax trees of every file."""

import ast
from pathlib import Path

from tests.sources import (
    ALL,
    PRODUCT,
    ROOT,
    WITHOUT_TESTS,
    calls,
    files,
    found_calls,
    importers,
    names,
    nodes,
    tree,
)
from tests.tracked import tracked

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


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
        "coordinator/server/watchers.py",
        "moe_model/__init__.py",
        "moe_model/checkpoint/reader.py",
        "moe_model/families/__init__.py",
        "moe_model/remote/url_source.py",
        "client/expertmesh/__init__.py",
        "client/expertmesh/cli.py",
        "client/expertmesh/command_line.py",
        "expert_workers/transports/table.py",
        # What one process, or workers, need, and is large.
        "coordinator/commands/serve.py",
        "coordinator/server/experts.py",
        *(
            path
            for path, found in importers("importlib", *PRODUCT).items()
            if set(found) == {"importlib.metadata"}
        ),
    }
    assert set(importers("runpy", *PRODUCT)) == {
        "coordinator/commands/chaos.py",
        "coordinator/commands/scaling_room.py",
    }


ENVIRONMENT = ("os.environ", "os.getenv", "os.environb", "os.putenv", "environ", "getenv")


def test_the_environment_is_read_in_few_files() -> None:
    readers = {path.as_posix() for path in files(*PRODUCT) if any(n in ENVIRONMENT for n, _ in names(path))}
    # Ray takes its settings from there only, and its processes with it.
    assert readers <= {
        "coordinator/server/environment.py",
        "client/expertmesh/command_line.py",
        "expert_workers/cluster/ray_environment.py",
        # So has a node what is its own.
        "expert_workers/cluster/data_ports.py",
        "moe_model/remote/settings.py",
        # Where the files of this process's own machine are.
        "expert_workers/tls.py",
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
    "expert_workers/cluster/leave.py",
    "expert_workers/processes.py",
    "expert_workers/transports/ray/fleet.py",
    "tests/chaos/",
    "tests/coordinator/api/test_leaving.py",
    "tests/coordinator/engine/process/linked.py",
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
    assert (
        found_calls(*PRODUCT, wanted=lambda name, call: name in FORBIDDEN_CALLS or _uses_a_shell(call)) == []
    )


def test_nobody_sleeps() -> None:
    found = found_calls(*PRODUCT, "chaos", "tests", wanted=lambda name, _: name in SLEEPS)
    assert [place for place in found if not place.startswith(POLLERS)] == []


def _uses_a_shell(call: ast.Call) -> bool:
    return any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords)


def test_only_commands_print() -> None:
    printing = found_calls(*PRODUCT, wanted=lambda name, _: name == "print")
    assert [place for place in printing if "/commands/" not in place] == []


def test_files_are_short() -> None:
    lengths = {p.as_posix(): len((ROOT / p).read_text(encoding="utf-8").splitlines()) for p in files(*ALL)}
    assert {path: n for path, n in lengths.items() if n >= MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{path}:{node.lineno}: {node.name}"
        for path in files(*PRODUCT, "chaos", "scaling")
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
