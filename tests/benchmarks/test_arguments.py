"""What `expertmesh bench NAME` is told, before anything heavy is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.arguments import PARSERS
from coordinator.commands.bench import BENCHMARKS

RUN = """
import sys
at_start = {name.partition(".")[0] for name in sys.modules}
from benchmarks.__main__ import main
try:
    main()
except SystemExit as end:
    code = end.code
names = {name.partition(".")[0] for name in sys.modules} - at_start - sys.stdlib_module_names
print("\\nLOADED", code, *sorted(names))
"""


def test_every_benchmark_has_arguments() -> None:
    assert set(PARSERS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(("argument", "code"), [("--help", "0"), ("--no-such-option", "2")])
def test_help_loads_only_the_standard_library(name: str, argument: str, code: str) -> None:
    command = [sys.executable, "-c", RUN, name, argument]
    folder = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=folder)
    found, *loaded = result.stdout.rpartition("\nLOADED")[2].split()
    assert found == code
    assert set(loaded) <= {"benchmarks", "coordinator", "expert_workers", "expertmesh", "moe_model"}
    assert len(result.stderr.splitlines()) == (code == "2")
