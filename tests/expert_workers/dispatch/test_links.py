"""A client's links: opened before routes name them, kept while routes do, and closed whenever they came."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from expert_workers.dispatch.links import Links
from expert_workers.dispatch.routes import HERE, Address, Routes
from expert_workers.transports.base import Failure, FailureReason, Plane, Served, Site, WorkerFailureError
from expert_workers.transports.in_process.links import LocalLink, LocalPlane
from expert_workers.transports.stream.auth import Endpoint
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec

WORKER = ExpertWorker(WorkerSpec(0, ""))
SECONDS = 5.0


class SlowTransport:
    """A Transport whose links are made when they may be; `made` are all of them, by endpoint."""

    spans_processes: ClassVar[bool] = True
    certificate_end: ClassVar[float | None] = None

    def __init__(self) -> None:
        self.made: dict[Any, LocalLink] = {}
        self.begun, self.may = threading.Event(), threading.Event()
        self.may.set()

    def serve(self, worker: ExpertWorker, site: Site) -> Served[Any]:
        raise NotImplementedError("nothing is served here")

    def connect(self, rank: int, endpoint: Any, timeout: float) -> LocalLink:
        if endpoint == "nowhere":
            raise WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: nothing listens"))
        self.begun.set()
        assert self.may.wait(30)
        self.made[endpoint] = LocalLink(rank, WORKER)
        return self.made[endpoint]

    def plane(self) -> Plane:
        return LocalPlane()


@pytest.fixture
def there() -> SlowTransport:
    return SlowTransport()


@pytest.fixture
def links(there: SlowTransport) -> Links:
    return Links(there, SlowTransport(), SECONDS)


def routes_to(version: int, *addresses: Address) -> Routes:
    return Routes(version, {address.rank: address for address in addresses}, {})


def test_routes_are_data_that_another_process_could_be_sent() -> None:
    endpoint = Endpoint(7, "boot", "\0name", "127.0.0.1", 1234, False, b"key")
    routes = Routes(3, {0: Address(0, 1, endpoint), HERE: Address.here(2, 9)}, {(0, 1): (0, HERE)})
    assert pickle.loads(pickle.dumps(routes)) == routes
    assert routes.addresses[0] != Address(0, 2, endpoint), "brought up again, it has another"


def test_routes_lead_over_the_links_that_were_opened_to_their_addresses(
    links: Links, there: SlowTransport
) -> None:
    first, second = Address(0, 1, "a"), Address(1, 1, "b")
    links.open(first, 1.0)
    linked = links.linked(routes_to(1, first, second))
    assert linked.links == {0: there.made["a"]}
    links.open(second, 1.0)
    assert links.linked(routes_to(2, first, second)).links == {0: there.made["a"], 1: there.made["b"]}


def test_an_address_in_this_process_is_reached_in_its_own_way(there: SlowTransport) -> None:
    here = SlowTransport()
    Links(there, here, SECONDS).open(Address.here(1, "a"), 1.0)
    assert (list(here.made), list(there.made)) == (["a"], [])


def test_a_link_that_cannot_be_opened_is_told_of_and_nothing_is_kept(links: Links) -> None:
    address = Address(2, 1, "nowhere")
    with pytest.raises(WorkerFailureError, match="worker 2: nothing listens"):
        links.open(address, 1.0)
    assert links.linked(routes_to(1, address)).links == {}


def test_a_link_ends_so_many_seconds_after_the_last_routes_that_named_its_address(
    links: Links, there: SlowTransport
) -> None:
    gone, stays = Address(0, 1, "gone"), Address(1, 1, "stays")
    links.open(gone, 1.0)
    links.open(stays, 1.0)
    old, new = links.linked(routes_to(1, gone, stays)), links.linked(routes_to(2, stays))
    links.retire(old.routes, new.routes, now=10.0)
    links.close_retired(10.0 + SECONDS - 0.1)
    assert there.made["gone"].failure is None
    links.close_retired(10.0 + SECONDS)
    assert there.made["gone"].failure is not None
    assert there.made["stays"].failure is None


def test_a_link_that_no_routes_name_yet_survives_routes_that_are_older(
    links: Links, there: SlowTransport
) -> None:
    before, address = Address(1, 1, "before"), Address(0, 1, "a")
    links.open(before, 1.0)
    links.open(address, 1.0)
    old, new = links.linked(routes_to(1, before)), links.linked(routes_to(2))
    links.retire(old.routes, new.routes, now=0.0)
    links.close_retired()
    assert links.linked(routes_to(3, address)).links == {0: there.made["a"]}
    assert there.made["a"].failure is None


def test_a_worker_that_comes_up_again_before_routes_name_it_leaves_no_link_behind(
    links: Links, there: SlowTransport
) -> None:
    links.open(Address(0, 1, "first"), 1.0)
    links.open(Address(1, 1, "other"), 1.0)
    links.open(Address(0, 2, "second"), 1.0)
    links.open(Address(0, 3, "third"), 1.0)
    assert links.linked(routes_to(1, Address(0, 2, "second"))).links == {0: there.made["second"]}
    assert there.made["first"].failure is not None
    assert [there.made[name].failure for name in ("other", "second", "third")] == [None] * 3
    assert links.linked(routes_to(2, Address(0, 3, "third"))).links == {0: there.made["third"]}


def test_a_link_that_no_routes_will_name_is_closed_and_one_that_they_name_is_kept(
    links: Links, there: SlowTransport
) -> None:
    lost, named = Address(0, 1, "lost"), Address(1, 1, "named")
    for address in (lost, named):
        links.open(address, 1.0)
    links.linked(routes_to(1, named))
    for address in (lost, named, Address(2, 1, "unknown")):
        links.forget(address)
    assert there.made["lost"].failure is not None
    assert there.made["named"].failure is None


def test_a_link_that_is_opened_while_all_are_closed_is_closed_too(links: Links, there: SlowTransport) -> None:
    """As when a worker comes up after its supervisor has ended."""
    links.open(Address(0, 1, "named"), 1.0)
    links.linked(routes_to(1, Address(0, 1, "named")))
    links.open(Address(1, 1, "opened"), 1.0)
    there.begun.clear()
    there.may.clear()
    with ThreadPoolExecutor(1) as executor:
        opening = executor.submit(links.open, Address(2, 1, "late"), 30.0)
        assert there.begun.wait(30)
        links.close()
        there.may.set()
        with pytest.raises(WorkerFailureError, match="worker 2: is not needed any more"):
            opening.result(30)
    assert all(link.failure is not None for link in there.made.values())
    assert list(there.made) == ["named", "opened", "late"]
    links.close()
