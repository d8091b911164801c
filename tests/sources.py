"""All source files of the project as syntax trees, for rules that a program can check."""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("client", "moe_model", "expert_workers", "coordinator")
WITHOUT_TESTS = (*PRODUCT, "benchmarks", "chaos", "scaling", "demo", "scripts")
ALL = (*WITHOUT_TESTS, "tests")


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


def found_calls(*rooms: str, wanted: Callable[[str, ast.Call], bool]) -> list[str]:
    return [
        f"{path}:{call.lineno}: {name}"
        for path in files(*rooms)
        for name, call in calls(path)
        if wanted(name, call)
    ]
