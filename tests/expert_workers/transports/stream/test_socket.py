"""Where a stream's server listens."""

import pytest

from expert_workers.transports.stream.socket import listen

HOST = "127.0.0.1"


def test_the_first_port_that_is_free_is_taken() -> None:
    with listen(HOST, range(0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"{HOST}: ports {port} to {port} are all taken"):
            listen(HOST, range(port, port + 1))
        with listen(HOST, range(port, min(port + 50, 65536))) as next_free:
            assert next_free.getsockname()[1] > port


def test_an_address_that_is_not_ours_is_said_to_be() -> None:
    with pytest.raises(OSError, match="assign"):
        listen("192.0.2.77", range(4711, 4713))
