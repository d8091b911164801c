"""`pytest --time-per-folder`: how many cases each folder of tests has, and what they take.

Processor time is what the tests' process and the children that it waited for have used: a Ray cluster's own
processes are not among them. Under pytest-xdist it is the sum over all processes.
"""

import resource
import time
from collections import Counter, defaultdict
from pathlib import PurePosixPath

import pytest

_NAME = "processor_seconds"
_FOLDERS = 3  # tests/coordinator/engine, and what is below it


def processor_seconds() -> float:
    """User's and system's time of this process and of the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def folder_of(nodeid: str) -> str:
    """Where a test's file lies, three folders deep at most."""
    return "/".join(PurePosixPath(nodeid.partition("::")[0]).parent.parts[:_FOLDERS])


class Processor:
    """In each process that runs tests: writes into each report what its test used."""

    def __init__(self) -> None:
        self._until = processor_seconds()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> None:
        now = processor_seconds()
        item.user_properties.append((_NAME, now - self._until))
        self._until = now


class TimePerFolder:
    """Where the reports of all processes arrive."""

    def __init__(self) -> None:
        self._cases: Counter[str] = Counter()
        self._wall: dict[str, float] = defaultdict(float)
        self._processor: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        folder = folder_of(report.nodeid)
        self._wall[folder] += report.duration
        if report.when == "teardown":  # The last of a test's three, with the properties of all.
            self._cases[folder] += 1
            used = (float(str(value)) for name, value in report.user_properties if name == _NAME)
            self._processor[folder] += sum(used)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("time per folder")
        terminalreporter.write_line(f"{'cases':>6} {'wall s':>8} {'cpu s':>8}  folder")
        for folder in sorted(self._wall):
            self._write(terminalreporter, folder, [folder])
        self._write(terminalreporter, "all", list(self._wall))

    def _write(self, reporter: pytest.TerminalReporter, name: str, folders: list[str]) -> None:
        cases = sum(self._cases[folder] for folder in folders)
        wall, processor = (sum(of[folder] for folder in folders) for of in (self._wall, self._processor))
        reporter.write_line(f"{cases:6d} {wall:8.1f} {processor:8.1f}  {name}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--time-per-folder", action="store_true", help="print cases and seconds of each folder")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--time-per-folder"):
        config.pluginmanager.register(Processor())
        config.pluginmanager.register(TimePerFolder())
