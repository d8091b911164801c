"""The worker's loop in C answers what Python would answer, to the bit, and leaves to Python what it cannot.

Shapes: R rows, P (row, expert) pairs, D d_model.
"""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_workers.transports.frame import ERROR, HEADER, call_frame, encode, parse_reply, read_header
from expert_workers.transports.stream.connect import connect
from expert_workers.transports.stream.serve_loop import loop_of
from expert_workers.transports.stream.socket import aligned_buffer, prepare
from expert_workers.wire import ExpertCall, ExpertReply, ReplyForm
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.errors import ReplyError
from moe_model.kernels.choice import choose_kernels
from tests.examples import examples
from tests.expert_workers.fakes import dealt, make_config, make_worker
from tests.expert_workers.stream_fakes import outcomes, running, soon, streams
from tests.native import needs_native

pytestmark = needs_native

CONFIG = make_config()
D = CONFIG.d_model
EPOCH = 3


def native_worker(dtype: torch.dtype = torch.float32) -> ExpertWorker:
    worker = make_worker(CONFIG, dealt(2, 5, 2), 0, dtype, choose_kernels("native", "cpu"))
    worker.claim("a coordinator", EPOCH)
    return worker


WORKER = native_worker()
HELD = [expert for layer, expert in dealt(2, 5, 2).experts_of(0) if layer == 0]


FAULTS = ["slot", "count", "rows", "index", "width", "layer", "epoch before", "epoch after"]


@st.composite
def calls(draw: st.DrawFn) -> ExpertCall:
    """Any call that is in order, and some that are not, for one reason."""
    fault = draw(st.sampled_from([None] * len(FAULTS) + FAULTS))
    experts = sorted(draw(st.sets(st.sampled_from(HELD), min_size=1, max_size=3)))
    if fault == "slot":
        experts.append(draw(st.sampled_from([1, 9])))
    segments = tuple((expert, draw(st.integers(1, 6))) for expert in experts)
    if fault == "count":
        segments = (*segments[:-1], (segments[-1][0], 0))
    num_pairs = sum(count for _, count in segments)
    has_index = fault == "index" or draw(st.booleans())
    least = -(-num_pairs // len(segments))
    num_rows = draw(st.integers(max(1, least), 20)) if has_index else num_pairs + (fault == "rows")
    indices = st.lists(st.integers(0, max(0, num_rows - 1)), min_size=num_pairs, max_size=num_pairs)
    index = np.array(draw(indices), np.int32)
    if fault == "index":
        index[-1:] = draw(st.sampled_from([-1, num_rows]))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    x_RD = generator.standard_normal((num_rows, D + (fault == "width")), np.float32)
    rows = x_RD if dtype == "float32" else (x_RD.view(np.uint32) >> 16).astype(np.uint16)
    form = draw(st.sampled_from(list(ReplyForm)))
    weights = generator.random(num_pairs, np.float32) if form is ReplyForm.SUM else None
    epoch = EPOCH + (fault == "epoch after") - (fault == "epoch before")
    layer = draw(st.sampled_from([1, 7])) if fault == "layer" else 0
    index_P = index if has_index else None
    return ExpertCall(draw(st.integers(0, 99)), epoch, layer, segments, index_P, weights, rows, dtype, form)


@contextmanager
def in_the_loop(worker: ExpertWorker, size: int = 1 << 16) -> Iterator[tuple[socket.socket, list[object]]]:
    """A socket into the loop, and, when it is closed, what the loop returned or raised each time it ended."""
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    stream = prepare(theirs, 0.05)
    buffer = aligned_buffer(size)
    found: list[object] = []
    loop = loop_of(worker)
    assert loop is not None

    def run() -> None:
        try:
            found.append(loop.run(stream.fileno(), buffer, 0, 0, tick=0.05, stall_timeout=0.2))
        except OSError as error:
            found.append(error)
        theirs.close()

    thread = threading.Thread(target=run, name="loop")
    thread.start()
    try:
        yield ours, found
    finally:
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def read_reply(stream: socket.socket) -> ExpertReply:
    header = read_header(receive(stream, HEADER.size))
    assert header.kind != ERROR
    return parse_reply(header, receive(stream, header.body_bytes))


def receive(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        assert part, "closed in the middle"
        data += part
    return data


def python_reply(call: ExpertCall) -> ExpertReply | Exception:
    try:
        return WORKER.compute(call)
    except Exception as error:  # noqa: BLE001 - whatever Python says is what counts
        return error


@given(st.lists(calls(), min_size=1, max_size=4))
@settings(max_examples=examples(150), deadline=None)
def test_answers_what_python_answers_and_stops_where_python_would_not(wanted: list[ExpertCall]) -> None:
    with in_the_loop(WORKER) as (stream, found):
        for call in wanted:
            expected = python_reply(call)
            stream.sendall(encode(call_frame(call)))
            if isinstance(expected, Exception):
                assert stream.recv(1) == b"", "the loop has answered what Python refuses"
                break
            reply = read_reply(stream)
            assert reply[:4] == expected[:4]
            assert np.array_equal(reply.y_ND, expected.y_ND)
            assert reply.compute_seconds >= 0
    refused = isinstance(python_reply(wanted[len(wanted) - 1]), Exception) or any(
        isinstance(python_reply(call), Exception) for call in wanted
    )
    [outcome] = found
    assert isinstance(outcome, tuple)
    assert outcome[0] is refused


def call_of(num_rows: int, call_id: int = 1) -> ExpertCall:
    rows = np.ones((num_rows, D), np.float32)
    weights = np.ones(num_rows, np.float32)
    segments = ((HELD[0], num_rows),)
    return ExpertCall(call_id, EPOCH, 0, segments, None, weights, rows, "float32", ReplyForm.SUM)


def test_byte_by_byte_and_many_at_once() -> None:
    frames = b"".join(encode(call_frame(call_of(3, call_id))) for call_id in range(20))
    with in_the_loop(WORKER, size=1000) as (stream, _):
        for place_ in range(300):
            stream.sendall(frames[place_ : place_ + 1])
        stream.sendall(frames[300:])
        assert [read_reply(stream).call_id for _ in range(20)] == list(range(20))


def status_of(thread: int) -> dict[str, str]:
    lines = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def test_a_worker_sleeps_on_while_its_answers_are_read() -> None:
    """Each waking is a trip to another core, and on a Unix socket taking a frame wakes who reads there."""
    with in_the_loop(WORKER) as (stream, _):
        [thread] = [thread.native_id for thread in threading.enumerate() if thread.name == "loop"]
        assert thread is not None
        frame, num_calls = encode(call_frame(call_of(2))), 100

        def answer() -> None:
            stream.sendall(frame)
            select.select([stream], [], [])
            while not status_of(thread)["State"].startswith("S"):
                pass
            read_reply(stream)
            # Looked at for a while, so that a waking would be one of its own.
            for _ in range(30):
                status_of(thread)

        answer()
        before = int(status_of(thread)["voluntary_ctxt_switches"])
        for _ in range(num_calls):
            answer()
        slept = int(status_of(thread)["voluntary_ctxt_switches"]) - before
    assert 0.9 * num_calls < slept < 1.5 * num_calls


def test_a_call_that_does_not_fit_is_left_to_python() -> None:
    with in_the_loop(WORKER, size=2000) as (stream, found):
        stream.sendall(encode(call_frame(call_of(2, 7))))
        assert read_reply(stream).call_id == 7
        stream.sendall(encode(call_frame(call_of(200)))[:1500])
        assert stream.recv(1) == b""
    assert isinstance(found[0], tuple)
    assert found[0][0] is True


def test_half_a_call_is_not_waited_for_for_ever_and_silence_is() -> None:
    with in_the_loop(WORKER) as (stream, found):
        stream.sendall(encode(call_frame(call_of(1))))
        assert read_reply(stream).call_id == 1
        stream.settimeout(0.5)
        with pytest.raises(TimeoutError):
            stream.recv(1)
        stream.settimeout(60)
        stream.sendall(encode(call_frame(call_of(1)))[:100])
        assert stream.recv(1) == b""
    assert [str(error) for error in found] == ["stopped in the middle of a frame"]


def test_a_peer_that_reads_no_answers_is_cut_off_and_holds_nobody_up() -> None:
    worker = native_worker()
    with in_the_loop(worker) as (deaf, found), in_the_loop(worker) as (other, _):
        frame = encode(call_frame(call_of(60)))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            deaf.sendall(frame * 10_000)
        other.sendall(encode(call_frame(call_of(2, 5))))
        assert read_reply(other).call_id == 5
    assert [type(error) for error in found] == [TimeoutError]


def test_a_peer_that_leaves_in_mid_frame_is_an_error() -> None:
    with in_the_loop(WORKER) as (stream, found):
        stream.sendall(encode(call_frame(call_of(1)))[:70])
    assert [type(error) for error in found] == [ConnectionResetError]


def test_its_pairs_are_counted() -> None:
    worker = native_worker()
    with streams({0: worker}) as (links, _):
        for call_id in range(3):
            [reply] = outcomes([links[0].send(call_of(4, call_id))])
            assert isinstance(reply, ExpertReply)
    assert worker.describe().routed_rows == 12


def test_there_is_no_loop_for_other_kernels() -> None:
    assert loop_of(make_worker(CONFIG, dealt(2, 5, 2), 0)) is None
    assert loop_of(ExpertWorker(WorkerSpec(0, "", device="cuda"))) is None


def test_after_a_frame_of_odd_length_calls_are_answered_all_the_same() -> None:
    """A reply where a call belongs is refused by Python; what follows begins at no multiple of anything."""
    worker = native_worker()
    with running({0: worker}) as machine:
        stream = connect(machine.server(0).endpoint, None, True, soon())
        assert isinstance(stream, socket.socket)
        stream.settimeout(60)
        header = HEADER.pack(b"EM", 3, 2, 0, 0, False, 7, 9, 0, 0, 0, 0, 0, 0, 0.0)
        stream.sendall(header + bytes(7) + encode(call_frame(call_of(3, 4))))
        refused = read_header(receive(stream, HEADER.size))
        assert (refused.kind, refused.call_id) == (ERROR, 9)
        receive(stream, refused.body_bytes)
        reply = read_reply(stream)
        expected = WORKER.compute(call_of(3, 4))
        assert reply.call_id == 4
        assert np.array_equal(reply.y_ND, expected.y_ND)
        stream.close()


def test_more_pairs_than_rows_and_experts_have_are_refused() -> None:
    rows, weights = np.ones((1, D), np.float32), np.ones(1000, np.float32)
    index = np.zeros(1000, np.int32)
    call = ExpertCall(1, EPOCH, 0, ((HELD[0], 1000),), index, weights, rows, "float32", ReplyForm.SUM)
    with pytest.raises(ReplyError, match="1000 pairs of 1 rows and 1 experts"):
        WORKER.compute(call)
    with in_the_loop(WORKER) as (stream, found):
        stream.sendall(encode(call_frame(call)))
        assert stream.recv(1) == b""
    assert isinstance(found[0], tuple)
    assert found[0][0] is True
