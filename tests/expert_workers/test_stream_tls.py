"""The stream transport over TLS: equal results, and nobody without a certificate of the CA."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from expert_workers.placement import place
from expert_workers.pool import ExpertPool
from expert_workers.stream_tls import TlsPaths, context
from expert_workers.stream_transport import StreamTransport
from expert_workers.transport import Failure, FailureReason
from expert_workers.worker import WorkerInfo
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import Authority, write_private
from tests.expert_workers.fakes import make_config, make_local, make_routing, make_rows, make_worker
from tests.expert_workers.stream_fakes import FakeControl, introduce_all

CONFIG = make_config()
PLACEMENT = place(2, 5, 2)


def write_paths(folder: Path, authority: Authority) -> TlsPaths:
    folder.mkdir()
    certificate, key = authority.sign()
    files = {"cert.pem": certificate, "key.pem": key, "ca.pem": authority.pem}
    return TlsPaths(*(str(write_private(folder / name, data)) for name, data in files.items()))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def paths(tmp_path: Path, authority: Authority) -> TlsPaths:
    return write_paths(tmp_path / "ours", authority)


@contextmanager
def serving(paths: TlsPaths | None) -> Iterator[FakeControl]:
    workers = {rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)}
    control = FakeControl(workers, None if paths is None else context(paths, is_server=True))
    yield control
    control.end()


def introduced(control: FakeControl, paths: TlsPaths | None) -> WorkerInfo | Failure:
    client = None if paths is None else context(paths, is_server=False)
    transport = StreamTransport(control, client, use_unix=False)
    outcome = introduce_all(transport)[0]
    transport.close()
    return outcome


def test_it_equals_local_experts_whatever_the_size(paths: TlsPaths) -> None:
    with serving(paths) as control:
        transport = StreamTransport(control, context(paths, is_server=False), use_unix=False)
        pool = ExpertPool.connect(PLACEMENT, transport)
        for num_tokens in (1, 9, 300, 5000, 40000):
            x_TD, routing = make_rows(num_tokens, CONFIG), make_routing(num_tokens, CONFIG.n_experts, 2)
            begun = [pool.begin(1, x_TD, routing) for _ in range(3)]
            expected = make_local(CONFIG).forward(1, x_TD, routing)
            for dispatch in begun:
                assert torch.equal(pool.finish(dispatch), expected)
        pool.close()


def test_a_certificate_of_another_ca_is_refused(tmp_path: Path, paths: TlsPaths) -> None:
    with serving(paths) as control:
        outcome = introduced(control, write_paths(tmp_path / "theirs", Authority("another CA")))
        assert isinstance(outcome, Failure)
        assert outcome.reason is FailureReason.DIED
        assert "certificate verify failed" in outcome.message
        assert isinstance(introduced(control, paths), WorkerInfo)


def test_both_ends_must_want_it(paths: TlsPaths) -> None:
    with serving(paths) as control:
        outcome = introduced(control, None)
        assert outcome == Failure(
            FailureReason.DIED, "worker 0: wants TLS on its stream, and none is set up here"
        )
    with serving(None) as control:
        outcome = introduced(control, paths)
        assert outcome == Failure(FailureReason.DIED, "worker 0: does not offer TLS on its stream")


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, paths: TlsPaths) -> None:
    missing = str(tmp_path / "missing.pem")
    for broken in (TlsPaths(missing, paths.key, paths.ca), TlsPaths(paths.cert, paths.key, missing)):
        with pytest.raises(
            ConfigError, match=r"data plane TLS .*missing\.pem: cannot be used \(No such file"
        ):
            context(broken, is_server=True)
