"""What a node's process is told."""

import socket

from expert_workers.machines.node_spec import NodeSpec, receive_line
from expert_workers.machines.ports import NodePorts, PortRange


def test_a_spec_survives_its_line() -> None:
    spec = NodeSpec("10.0.0.1:6379", "10.0.0.2", False, 4, NodePorts(7000, PortRange(1, 2), PortRange(3, 4)))
    ours, its = socket.socketpair()
    with ours, its:
        ours.sendall(spec.line() + b"end\n")
        assert NodeSpec.parse(receive_line(its)) == spec
        assert its.recv(10) == b"end\n", "what follows is the keeper's"
        ours.close()
        assert receive_line(its) == b""


def test_ports_have_names_and_a_sample() -> None:
    ports = NodePorts()
    assert ports.sample() == (*range(6381, 6387), 20000, 20099, 20100, 20199)
    assert len(list(ports.all())) == 206
    assert [ports.name_of(port) for port in (6382, 20000, 20100, 6379)] == [
        *("Ray's object manager", "Ray's workers", "rows", "Ray's head")
    ]
    assert ports.workers.overlaps(PortRange(20099, 20100))
    assert not ports.workers.overlaps(ports.data)
