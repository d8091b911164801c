"""What a cell asks of its hosts, and which cables that makes; nothing is started."""

from types import SimpleNamespace
from typing import Any

import pytest

from scaling.cell import Cell, Host, Load
from scaling.hosts.cluster import ClusterShape, caps_of, limit, links_of
from scaling.hosts.relay import num_wire_bytes
from scaling.link import Link


def cell(**fields: Any) -> Cell:
    return Cell("demo", Load(concurrency=1), where="namespaces", **fields)


def test_hosts_that_are_not_described_have_no_caps() -> None:
    assert caps_of(cell(workers=2)) == (Host(), Host())


def test_hosts_are_kept_where_only_quotas_and_links_change() -> None:
    shape = ClusterShape.of(cell(workers=2))
    assert shape == ClusterShape.of(cell(workers=2, link=Link(gbit=1)))
    assert shape == ClusterShape.of(cell(workers=2, hosts=(Host(cores=0.2), Host(link=Link(delay_ms=1)))))
    assert shape != ClusterShape.of(cell(workers=1))
    assert shape != ClusterShape.of(cell(workers=2, hosts=(Host(), Host(memory_mb=500))))


def test_the_cable_of_the_coordinator_is_as_wide_as_the_link_and_no_more() -> None:
    link, own = Link(gbit=1, delay_ms=2, loss_percent=3), Link(delay_ms=9)
    hosts: list[Any] = ["head", "w0", "w1"]
    links = links_of(cell(workers=2, link=link, hosts=(Host(), Host(link=own))), hosts[0], hosts[1:])
    assert [links[host] for host in hosts] == [Link(gbit=1), link, own]


def test_a_host_without_a_group_has_no_quota() -> None:
    host: Any = SimpleNamespace(name="w0", group=None)
    with pytest.raises(RuntimeError, match="w0 has no control group"):
        limit(host, 0.5)


def frame(kind: int, header_len: int, segment_len: int, num: int) -> bytes:
    header = bytes([0, kind]) + header_len.to_bytes(2, "little") + segment_len.to_bytes(2, "little")
    return header + bytes(4) + bytes(num)


def test_a_frame_of_many_packets_has_a_header_for_each() -> None:
    assert num_wire_bytes(frame(0, 0, 0, 1514)) == 1514
    assert num_wire_bytes(frame(1, 66, 1448, 66 + 1448)) == 1514
    assert num_wire_bytes(frame(1, 66, 1448, 66 + 1449)) == 2 * 66 + 1449
    assert num_wire_bytes(frame(1, 66, 1448, 66 + 40 * 1448)) == 40 * 1514
