"""The stream transport over TLS: equal results, and no peer without a certificate of the CA."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from expert_workers.tls import TlsPaths, check_own, context
from expert_workers.transports.base import FailureReason, Site, TransportOptions, WorkerFailureError
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.transports.stream.transport import StreamTransport
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import Authority, write_private
from tests.expert_workers.fakes import dealt, make_config, make_local, make_routing, make_rows, make_worker
from tests.expert_workers.stream_fakes import HOST, FakeMachine, StreamFleet, running, stream_pool

CONFIG = make_config()
PLACEMENT = dealt(2, 5, 2)


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
def serving(paths: TlsPaths | None) -> Iterator[FakeMachine]:
    workers = {rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)}
    with running(workers, None if paths is None else context(paths, is_server=True)) as machine:
        yield machine


def opened(machine: FakeMachine, paths: TlsPaths | None, rank: int = 0) -> StreamConnection:
    client = None if paths is None else context(paths, is_server=False)
    return StreamFleet(machine, tls=client, use_unix=False).open(rank)


def test_it_equals_local_experts_whatever_the_size(paths: TlsPaths) -> None:
    with serving(paths) as machine:
        pool = stream_pool(PLACEMENT, {rank: opened(machine, paths, rank) for rank in range(2)})
        for num_tokens in (1, 9, 300, 5000, 40000):
            x_TD, routing = make_rows(num_tokens, CONFIG), make_routing(num_tokens, CONFIG.n_experts, 2)
            begun = [pool.begin(1, x_TD, routing) for _ in range(3)]
            expected = make_local(CONFIG).forward(1, x_TD, routing)
            for dispatch in begun:
                assert torch.equal(pool.finish(dispatch), expected)
        pool.close()


def test_a_certificate_of_another_ca_is_refused(tmp_path: Path, paths: TlsPaths) -> None:
    with serving(paths) as machine:
        with pytest.raises(WorkerFailureError, match="certificate verify failed") as raised:
            opened(machine, write_paths(tmp_path / "theirs", Authority("another CA")))
        assert raised.value.failure.reason is FailureReason.DIED
        opened(machine, paths).close()


@pytest.mark.parametrize(
    ("is_served", "message"),
    [
        (True, r"^worker 0: wants TLS on its stream, and none is set up here$"),
        (False, r"^worker 0: does not offer TLS on its stream$"),
    ],
)
def test_both_ends_must_want_it(paths: TlsPaths, is_served: bool, message: str) -> None:
    with (
        serving(paths if is_served else None) as machine,
        pytest.raises(WorkerFailureError, match=message),
    ):
        opened(machine, None if is_served else paths)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, paths: TlsPaths) -> None:
    missing = str(tmp_path / "missing.pem")
    for broken in (TlsPaths(missing, paths.key, paths.ca), TlsPaths(paths.cert, paths.key, missing)):
        with pytest.raises(
            ConfigError, match=r"data plane TLS .*missing\.pem: cannot be used \(No such file"
        ):
            context(broken, is_server=True)


def test_a_transport_names_its_files_before_workers_start_and_opens_links_without_them(
    paths: TlsPaths, tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match=r"missing\.pem: cannot be used"):
        StreamTransport(TransportOptions(TlsPaths(missing, paths.key, paths.ca)))
    ours = StreamTransport(TransportOptions(paths), use_unix=False)
    # As a worker's process gets it.
    theirs = pickle.loads(pickle.dumps(ours))
    assert theirs.certificate_end is None, "its machine has another certificate"
    server = theirs.serve(make_worker(CONFIG, PLACEMENT, 0), Site(HOST))
    assert ours.certificate_end == theirs.certificate_end == check_own(paths)
    Path(paths.cert).unlink()
    link = ours.connect(0, server.endpoint, 10.0)
    assert server.endpoint.is_tls
    assert link.failure is None
    link.close()
    server.close()
