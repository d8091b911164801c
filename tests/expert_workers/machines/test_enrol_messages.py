"""What is read of a message is of the kind that it is used as, whoever sends it."""

import json
from typing import Any

import pytest

from expert_workers.machines.enrol_messages import EnrolRequest, MessageError, ReachRequest, encode
from expert_workers.machines.ports import NodePorts
from tests.expert_workers.machines.made import a_request


@pytest.mark.parametrize("first", [6381.5, 6381.0, True, "6381", 1023, 65535, None])
def test_ports_are_whole_numbers_of_a_range(first: Any) -> None:
    sent = json.loads(encode(ReachRequest(NodePorts())))
    assert ReachRequest.parse(json.dumps(sent).encode()).ports == NodePorts()
    sent["ports"]["first"] = first
    with pytest.raises(MessageError, match="ports: "):
        ReachRequest.parse(json.dumps(sent).encode())


@pytest.mark.parametrize("time", ["1e999", "-1e300", "1" + 400 * "0", "true", '"1"'])
def test_a_time_is_one_that_a_clock_can_have(time: str) -> None:
    sent = json.dumps({**json.loads(encode(a_request())), "time": 0}).replace('"time": 0', f'"time": {time}')
    with pytest.raises(MessageError):
        EnrolRequest.parse(sent.encode())
