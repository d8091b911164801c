"""One Ray cluster for all tests that join one and leave it as it was."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.ray_cluster import Actors, Cluster, cluster


@dataclass(frozen=True)
class Shared:
    """The cluster of a test session, and a process that sees its actors."""

    cluster: Cluster
    actors: Actors


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with cluster(tmp_path_factory.mktemp("shared") / "token", num_cpus=4) as running:
        actors = Actors(running)
        yield Shared(running, actors)
        actors.close()


@pytest.fixture
def shared_cluster(session_cluster: Shared) -> Iterator[Shared]:
    """The session's cluster. A test that leaves an actor there, or ends the cluster, has failed."""
    yield session_cluster
    assert session_cluster.actors.left() == []
