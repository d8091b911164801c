"""What is said of streams whose server lost a process."""

import os
import socket

import pytest

from benchmarks import process_tree
from benchmarks.deaths import judged, tokens
from benchmarks.light_clients import Trace
from expertmesh.v1 import generation_pb2 as pb


def trace(code: str, *token_ids: int) -> Trace:
    """A message a token."""
    events = [pb.GenerateStreamResponse() for _ in token_ids]
    for event, token in zip(events, token_ids, strict=True):
        event.delta.token_ids.append(token)
    return Trace(0.0, code, [(0.0, event.SerializeToString()) for event in events])


def test_tokens_are_those_of_all_messages() -> None:
    assert tokens(trace("OK", 7, 8, 9)) == [7, 8, 9]


def test_what_the_killed_front_had_is_not_lost_and_what_ends_early_is_not_changed() -> None:
    found = judged([trace("OK", 1, 2), trace("UNAVAILABLE", 1)], [[1, 2], [1, 2]], num_killed=1)
    assert (found.killed, found.lost, found.changed) == (1, 0, 0)


def test_one_more_than_the_killed_front_had_is_lost() -> None:
    traces = [trace("UNAVAILABLE"), trace("RESET"), trace("OK", 1, 3)]
    found = judged(traces, [[1, 2]] * 3, num_killed=1)
    assert (found.lost, found.changed) == (1, 1)


def test_a_front_whose_streams_go_on_was_not_killed() -> None:
    with pytest.raises(RuntimeError, match="only 1 of 2 streams ended with their front"):
        judged([trace("UNAVAILABLE"), trace("OK", 1)], [[1], [1]], num_killed=2)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_established_connections_of_a_port_are_counted(family: socket.AddressFamily) -> None:
    """Of IPv6 as gRPC has them, which IPv4 reaches."""
    with socket.create_server(("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        assert process_tree.num_connections(os.getpid(), port) == 0
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            # The other end is ours as well, at a port of its own.
            assert process_tree.num_connections(os.getpid(), port) == 1
