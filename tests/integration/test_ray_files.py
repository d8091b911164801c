"""What lends a coordinator's files to machines that have none, as a real Ray actor."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.transports.base import WorkerFailureError
from expert_workers.transports.ray.fleet import FleetOptions, RayFleet
from expert_workers.transports.ray.peers import FILE_SERVER, RayPeers
from expert_workers.transports.ray.transport import RayTransport
from expert_workers.worker.expert_worker import WorkerSpec
from expert_workers.worker.offer import Offer
from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.manifest import MANIFEST
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.halt import Halt
from moe_model.remote.folder_source import listing_of
from tests.expert_workers.fakes import make_config
from tests.integration.ray_experts import until

pytestmark = pytest.mark.long
_NAMESPACE = "files"


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    cluster = RayCluster.start_local(num_cpus=2, object_store_bytes=80 << 20)
    yield
    cluster.close()


@pytest.mark.usefixtures("_cluster")
def test_a_coordinator_that_is_refused_leaves_the_other_s_files_alone(tmp_path: Path) -> None:
    """What lends them is called the same for all of a namespace. Killed, it comes back."""
    initialise_checkpoint(tmp_path / "checkpoint", make_config())
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    offer = Offer(checkpoint.name, listing_of(checkpoint))
    # There is one machine here: the files come to be there once the worker has seen that they are not.
    there = tmp_path / "there"
    spec = WorkerSpec(0, str(there), checkpoint.dtype, num_threads=1, offer=offer)
    first, second = (RayFleet(FleetOptions(spec, _NAMESPACE, RayTransport())) for _ in range(2))
    first.start(0)
    try:
        assert not first.describe(0, 60.0).has_files
        shutil.copytree(checkpoint.path, there)
        first.claim(0, "first", 1, by_force=False, timeout=10.0)
        lending = ray.get_actor(FILE_SERVER, namespace=_NAMESPACE)._actor_id
        second.describe(0, 60.0)
        with pytest.raises(WorkerFailureError, match="is in use by first"):
            second.claim(0, "second", 2, by_force=False, timeout=10.0)
        second.close()
        assert ray.get_actor(FILE_SERVER, namespace=_NAMESPACE)._actor_id == lending
        ray.kill(ray.get_actor(FILE_SERVER, namespace=_NAMESPACE), no_restart=False)
        until(lambda: _is_read(RayPeers(_NAMESPACE)))
    finally:
        first.end([0])
        first.close()


def _is_read(peers: RayPeers) -> bool:
    try:
        return len(peers.read(MANIFEST, [(0, 10)], Halt())) == 1
    except CheckpointError:
        return False
