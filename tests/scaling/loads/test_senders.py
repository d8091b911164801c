"""Which senders there are, and what each says where it cannot send."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe_model.errors import ConfigError
from scaling.cell import Load
from scaling.loads.base import Target
from scaling.loads.own import OwnSender, timed_of
from scaling.loads.own_messages import Answer
from scaling.loads.senders import missing_load, sender
from scaling.loads.subprocesses import Deadline, ended, first_line
from scaling.loads.tools import tool as tools
from scaling.loads.tools.tokenizer_folder import tokenizer_folder
from scaling.loads.tools.tool import program, run_tool
from scaling.workloads.request import Planned

TARGET = Target("127.0.0.1:1", "127.0.0.1:1", "m", 100, 64)
LOAD = Load(concurrency=1)


def test_a_name_that_is_none_names_those_that_there_are() -> None:
    assert isinstance(sender("own"), OwnSender)
    with pytest.raises(ConfigError, match="tool: 'wrk' is none of own, guidellm, aiperf, vllm"):
        sender("wrk")
    with pytest.raises(ConfigError, match="lm-eval measures answers and tells no times"):
        sender("lm-eval")


def test_what_is_lacking_is_said_before_a_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "ENVIRONMENTS", tmp_path)
    assert missing_load(LOAD) == ""
    assert "aiperf is not installed" in missing_load(Load(concurrency=1, tool="aiperf"))
    absent = Load(concurrency=1, trace=str(tmp_path / "t.csv"), trace_format="azure")
    assert missing_load(absent).endswith("t.csv: no such file")


@pytest.mark.parametrize("name", ["guidellm", "aiperf", "vllm"])
@pytest.mark.parametrize(
    ("load", "message"),
    [
        (Load(concurrency=1, trace="t", trace_format="azure"), "sends requests of one length"),
        (Load(concurrency=1, lengths="uniform"), "sends requests of one length"),
        (Load(concurrency=1, rate=1.0), "say one of concurrency and rate"),
        (LOAD, "no tokenizer.json"),
    ],
)
def test_what_a_tool_cannot_send_is_said_before_it_starts(
    tmp_path: Path, name: str, load: Load, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sender(name).run(TARGET, load, 0, tmp_path, lambda: None, 1.0)


def test_a_tool_that_is_not_installed_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "ENVIRONMENTS", tmp_path)
    with pytest.raises(ConfigError, match=r"aiperf is not installed: python scripts/load_tools\.py aiperf"):
        program("aiperf")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_tool_that_fails_is_a_line_with_what_it_said(tmp_path: Path) -> None:
    code = "import sys; print('ValueError: no such model'); print('---'); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"t failed, exit code 3: ValueError: no such model \(.*t\.log\)"):
        run_tool("t", python(code), tmp_path, 60.0)


# A child that does not hear what its parent is told.
LEAVES_A_CHILD = """
import os, pathlib, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if not child:
    signal.pause()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
pathlib.Path("child").write_text(str(child))
"""


def test_a_tool_that_does_not_end_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="had not ended after 2 s"):
        run_tool("t", python(LEAVES_A_CHILD + "os.wait()"), tmp_path, 2.0)
    assert not runs(tmp_path / "child")


def test_what_a_tool_leaves_behind_is_ended(tmp_path: Path) -> None:
    run_tool("t", python(LEAVES_A_CHILD), tmp_path, 60.0)
    assert not runs(tmp_path / "child")


def runs(pid_file: Path) -> bool:
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_a_process_that_says_nothing_has_a_deadline() -> None:
    process = subprocess.Popen(python("import signal; signal.pause()"), stdout=subprocess.PIPE)
    with ended(process), pytest.raises(RuntimeError, match="had not begun after 0 s"):
        first_line(process, Deadline(0.2))
    assert process.poll() is not None


def test_a_tokenizer_folder_is_the_models_own_or_made(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "tokenizer.json"
    file.write_text("{}")
    target = Target("h:1", "h:2", "m", 100, 64, tokenizer=file)
    made = tokenizer_folder(target, tmp_path)
    assert made == tmp_path / "tokenizer"
    assert sorted(path.name for path in made.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    (file.parent / "tokenizer_config.json").write_text("{}")
    assert tokenizer_folder(target, tmp_path) == file.parent


def test_a_stream_that_ends_early_is_an_error() -> None:
    planned = Planned((1, 2), 3)
    assert timed_of(Answer(0.0, 0.0, 1.0, "OK", ()), planned).error == "INCOMPLETE"
    assert timed_of(Answer(0.0, 0.0, 1.0, "UNAVAILABLE", ()), planned).error == "UNAVAILABLE"
