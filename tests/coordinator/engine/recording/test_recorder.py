"""What ends a recording, and that nothing else ends with it; what a reader takes, and what it refuses."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.engine.core.engine import Engine
from coordinator.engine.recording import recorder as recorder_module
from coordinator.engine.recording.recorder import RoutingRecorder
from coordinator.engine.recording.trace_format import BEGIN, ENTRY, ROWS, Block, pack_block, pack_header
from coordinator.engine.recording.trace_reader import TraceReader
from moe_model.errors import ConfigError
from moe_model.kernels.choice import choose_kernels
from tests.coordinator.engine.recording.recordings import header_for, recorded, recorder_for
from tests.coordinator.engine.speculating import engine_with
from tests.models import TINY, drain, make_request

CONFIG = replace(TINY, max_seq_len=48)
NATIVE = choose_kernels("native", "cpu", 1)


def engine_over(recorder: RoutingRecorder) -> Engine:
    return engine_with(None, CONFIG, NATIVE, recorder=recorder)


def run(engine: Engine, name: str = "r", max_tokens: int = 6) -> list[int]:
    engine.submit(make_request(name, (1, 2, 3), max_tokens))
    return drain(engine)[name].token_ids


def test_at_its_bound_it_stops_and_serving_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, bool]] = []
    recorder = recorder_for(tmp_path / "trace", CONFIG, most_tokens=5)
    recorder._told = lambda num, is_written: told.append((num, is_written))
    engine = engine_over(recorder)
    assert len(run(engine)) == 6
    assert len(run(engine, "s")) == 6
    recorder.close()
    assert sum(len(each.ids_TLK) for each in recorded(tmp_path / "trace").values()) == 5
    assert not next(iter(recorded(tmp_path / "trace").values())).is_whole
    assert sum("has stopped" in each.message for each in caplog.records) == 1
    assert sum(num for num, is_written in told if is_written) == 5
    assert sum(num for num, is_written in told if not is_written) == 2 * (3 + 6 - 1) - 5


def test_a_disk_that_is_too_slow_ends_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = recorder_for(tmp_path / "trace", CONFIG, max_waiting_bytes=0)
    recorder._given = 1
    assert len(run(engine_over(recorder))) == 6
    recorder.close()
    assert "too slow" in caplog.text


def test_a_full_disk_ends_it_and_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = recorder_for(tmp_path / "trace", CONFIG)

    def full(_file: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder_module, "_write", full)
    engine = engine_over(recorder)
    assert len(run(engine)) == 6
    recorder._thread.join(10)
    assert not recorder._thread.is_alive()
    assert len(run(engine, "s")) == 6
    assert not recorder.is_on
    assert caplog.text.count("No space left on device") == 1
    recorder.close()
    assert TraceReader.open(tmp_path / "trace").header.top_k == 2


def test_what_goes_wrong_in_a_step_ends_it_and_no_request(tmp_path: Path) -> None:
    recorder = recorder_for(tmp_path / "trace", CONFIG)
    recorder._num_requests = None  # type: ignore[assignment]
    assert len(run(engine_over(recorder))) == 6
    assert not recorder.is_on
    recorder.close()


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    for _ in range(3):
        recorder_for(tmp_path / "trace", CONFIG).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace", "trace.1", "trace.2"]
    assert os.stat(tmp_path / "trace").st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--record-routing: .*nowhere/trace: No such file"):
        recorder_for(tmp_path / "nowhere" / "trace", CONFIG)


KILLED = """
import sys
from pathlib import Path
from tests.coordinator.engine.recording.test_recorder import CONFIG, engine_over, run
from tests.coordinator.engine.recording.recordings import recorder_for
engine = engine_over(recorder_for(Path(sys.argv[1]), CONFIG))
run(engine)
engine.submit(__import__("tests.models").models.make_request("s", (4, 5), 30))
while True:
    engine.step() if engine.has_work else print("done", flush=True) or sys.stdin.read()
"""


@pytest.mark.long
def test_after_a_kill_the_whole_blocks_are_there(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {os.getcwd()!r})\n{KILLED}"]
    path = tmp_path / "trace"
    with subprocess.Popen(
        [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
        finally:
            process.send_signal(signal.SIGKILL)
    trace = TraceReader.open(path)
    assert all(each.known_T.all() for each in trace.requests())


def written(path: Path) -> bytes:
    recorder = recorder_for(path, CONFIG)
    run(engine_over(recorder))
    recorder.close()
    return path.read_bytes()


def test_a_file_may_end_anywhere(tmp_path: Path) -> None:
    """Each beginning of it is readable, once the header is there."""
    data = written(tmp_path / "trace")
    cut = tmp_path / "cut"
    begins_at = TraceReader.open(tmp_path / "trace")._begins_at
    for length in range(begins_at, len(data)):
        cut.write_bytes(data[:length])
        trace = TraceReader.open(cut)
        list(trace.requests())
        assert trace.is_cut == (length > begins_at)
    for length in range(begins_at):
        cut.write_bytes(data[:length])
        with pytest.raises(ConfigError, match="cut: "):
            TraceReader.open(cut)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_with_other_bytes_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "trace"
    if not path.exists():
        written(path)
    found = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=4)):
        found[at] = data.draw(st.integers(0, 255))
    broken = tmp_path / "broken"
    broken.write_bytes(found)
    with suppress(ConfigError):
        list(TraceReader.open(broken).requests())


HOSTILE = [
    ([(ROWS, 0, 0, 7, 0, 1, 0)], 1, 0, "sequence 7 has not begun"),
    ([(BEGIN, 0, 0, 7, 0, 1, 0)] * 2, 0, 0, "begins twice"),
    ([(BEGIN, 0, 0, 7, 0, 1, 0), (ROWS, 0, 0, 7, 0, 1, 0)], 1, 9, "not below 4"),
    ([(BEGIN, 0, 0, 7, 0, 1, 0), (ROWS, 0, 0, 7, 4_000_000_000, 1, 0)], 1, 0, "a sequence of 4000000001"),
    ([(9, 0, 0, 7, 0, 0, 0)], 0, 0, "other rows than it says"),
    ([(BEGIN, 0, 0, 7, 0, 1, 0), (ROWS, 0, 0, 7, 0, 4_000_000_000, 0)], 1, 0, "other rows than it says"),
]


@pytest.mark.parametrize(("entries", "num_rows", "expert", "message"), HOSTILE)
def test_a_hostile_file_is_refused(
    tmp_path: Path, entries: list[tuple[int, ...]], num_rows: int, expert: int, message: str
) -> None:
    ids_TLK = np.full((num_rows, 2, 2), expert, dtype=np.uint16)
    block = Block(np.array(entries, dtype=ENTRY), ids_TLK)
    (tmp_path / "trace").write_bytes(pack_header(asdict(header_for(CONFIG))) + pack_block(block))
    with pytest.raises(ConfigError, match=f"trace: .*{message}"):
        list(TraceReader.open(tmp_path / "trace").requests())
