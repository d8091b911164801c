"""What a command says while it starts: lines with times, and on a terminal one that is alive."""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.api.shared import logging_setup
from coordinator.commands.start_report import StartReport, plainly, to_log
from tests.integration.processes import COMMAND, DEMO_CHECKPOINT, PORTS, Server, run_command

CLEAR = "\r\x1b[K"


class Terminal(io.StringIO):
    """Tells when it has been written to so often."""

    def __init__(self) -> None:
        super().__init__()
        self.num_lines_drawn = 0
        self.was_drawn_twice = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.num_lines_drawn += "..." in text
        if self.num_lines_drawn >= 2:
            self.was_drawn_twice.set()
        return super().write(text)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before in the end."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_each_phase_says_how_long_the_one_before_took() -> None:
    stream = io.StringIO()
    with StartReport(stream) as report:
        report("libraries")
        assert stream.getvalue() == ""
        report.say_with(plainly(stream))
        report("Ray")
        report.done()
    first, second, last = stream.getvalue().splitlines()
    assert first == "starting libraries"
    assert re.fullmatch(r"starting Ray \(libraries: \d+\.\d\d s\)", second)
    assert re.fullmatch(r"started in \d+\.\d\d s \(Ray: \d+\.\d\d s\)", last)


def test_nothing_is_alive_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with StartReport(stream) as report:
        report("Ray")
        assert "start-report" not in {thread.name for thread in threading.enumerate()}
    assert stream.getvalue() == ""


def test_the_line_is_alive_and_leaves_nothing_behind() -> None:
    stream = Terminal()
    with StartReport(stream, tick=0.001) as report:
        report("Ray")
        assert stream.was_drawn_twice.wait(60)
    shown = stream.getvalue()
    assert shown.startswith(f"{CLEAR}starting Ray ... 0 s")
    assert shown.endswith(CLEAR)
    assert "\n" not in shown
    assert "start-report" not in {thread.name for thread in threading.enumerate()}


def test_the_living_line_says_how_far_a_phase_is() -> None:
    stream = Terminal()
    with StartReport(stream, tick=60) as report:
        report("experts")
        report.progress(10**9, 4 * 10**9)
        report._draw()
        assert stream.getvalue().endswith("starting experts ... 0 s, 1.0 GB of 4.0 GB")
        report("engine")
        assert stream.getvalue().endswith("starting engine ... 0 s"), "the next one begins anew"


def test_a_log_hears_now_and_then_how_far_a_phase_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("coordinator.commands.start_report.time.monotonic", lambda: now)
    stream = io.StringIO()
    with StartReport(stream) as report:
        report.say_with(plainly(stream))
        report("experts")
        for second in range(25):
            now = float(second)
            report.progress(second * 10**9, 40 * 10**9)
    assert stream.getvalue().splitlines() == [
        "starting experts",
        "experts: 10.0 GB of 40.0 GB, 1.0 GB/s, 30 s left",
        "experts: 20.0 GB of 40.0 GB, 1.0 GB/s, 20 s left",
    ]


def test_a_line_of_the_log_gets_a_line_of_its_own(root: logging.Logger) -> None:
    """However often the living line is drawn meanwhile."""
    stream = Terminal()
    logging_setup.configure(stream, "text", "info")
    with StartReport(stream, tick=1e-6) as report:
        report.say_with(to_log(logging.getLogger("start")))
        report("Ray")
        for _ in range(1000):
            logging.getLogger("other").warning("something else")
    assert [line for line in visible(stream.getvalue()) if line and not line.startswith("20")] == []
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is stream


def visible(shown: str) -> list[str]:
    """The lines of a terminal when all is written."""
    return [line.rpartition(CLEAR)[2] for line in shown.split("\n")]


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    stream = Terminal()
    with StartReport(stream, tick=60) as report:
        report("Ray")
        stream.close()
        report("workers")


ENDS_BEFORE_LIBRARIES = """
import os, sys
class End:
    def find_spec(self, name, path=None, target=None):
        if name == f"coordinator.commands.{sys.argv[1]}":
            os._exit(7)
sys.meta_path.insert(0, End())
from expertmesh.cli import main
main()
"""


def said_before_libraries(*arguments: str) -> str:
    """On standard error, which is a pipe, until the command's own module is looked for."""
    command = [sys.executable, "-c", ENDS_BEFORE_LIBRARIES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, "")
    return done.stderr


def test_serve_says_that_libraries_load_before_they_do() -> None:
    (line,) = said_before_libraries("serve", "x").splitlines()
    assert re.fullmatch(r"20\d\d-\S+ \S+ INFO coordinator\.commands\.serve: starting libraries", line)
    found = json.loads(said_before_libraries("serve", "x", "--log-format", "json"))
    assert (found["message"], found["phase"]) == ("starting", "libraries")
    assert said_before_libraries("serve", "x", "--log-level", "warning") == ""


def test_demo_says_so_too_and_generate_only_on_a_terminal() -> None:
    assert said_before_libraries("demo", "x", "--prompt", "x") == "starting libraries\n"
    assert said_before_libraries("generate", "x", "--prompt", "x", "--workers", "1") == ""


def test_serve_tells_its_phases_as_its_log_is(tmp_path: Path) -> None:
    arguments = [str(DEMO_CHECKPOINT), "--workers", "0", "--log-format", "json"]
    with Server(*arguments, log=tmp_path / "log") as server:
        server.wait_ready()
        lines = [json.loads(line) for line in server.log.splitlines()]
    starting = [line for line in lines if line["message"] == "starting"]
    assert [line["phase"] for line in starting] == ["libraries", "checkpoint", "experts", "engine", "warm-up"]
    assert all(line["seconds"] >= 0 for line in starting[1:])
    (started,) = [line for line in lines if line["message"] == "started"]
    assert started["total"] >= sum(line["seconds"] for line in starting[1:])


GENERATE = ["generate", str(DEMO_CHECKPOINT), "--token-ids", "2,5", "--max-tokens", "1", "--json"]
WITH_WORKERS = ["--workers", "1", "--transport", "in-process"]


def test_workers_are_a_phase_and_stdout_is_only_the_text() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *GENERATE, *WITH_WORKERS], stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = read_all(ours)
        assert process.stdout is not None
        assert len(json.loads(process.stdout.read())) > 1
        assert process.wait(60) == 0, shown
    lines = [line for line in visible(shown) if line]
    assert re.match(r"starting 1 workers with their experts \(", lines[1])
    assert lines[-1].startswith("started in ")


def test_a_pipe_gets_the_text_alone() -> None:
    result = run_command(*GENERATE, *WITH_WORKERS)
    assert (result.returncode, result.stderr) == (0, "")


def read_all(terminal: int) -> str:
    """What is shown on a terminal until its other end is closed."""
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:
        # So a pty says that its other end is closed.
        pass
    os.close(terminal)
    return shown.decode().replace("\r\n", "\n")


def test_on_a_terminal() -> None:
    """As a person sees it: the living line below lines of the log, and none of the former is left."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "serve", *PORTS, str(DEMO_CHECKPOINT), "--workers", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"READY ")
        process.terminate()
        text = read_all(ours)
        assert process.wait(60) == 0
    first, _, more = text.partition("\n")
    assert first.endswith(" coordinator.commands.serve: starting libraries")
    assert more.startswith(f"{CLEAR}starting libraries ... 0 s")
    assert all(re.match(r"20\d\d-", line) for line in visible(text) if line), visible(text)
