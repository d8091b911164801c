"""The rooms of expert_workers: which may know which, and what is known by its row in a table only."""

from tests.sources import PRODUCT, files, importers, imports

# The rooms of expert_workers, each with the rooms that it may import: only rooms further up, so no circle.
ROOMS_OF_WORKERS: dict[str, set[str]] = {
    "wire": set(),
    "tls": set(),
    "status": set(),
    "processes": set(),
    "worker": {"wire", "processes"},
    "cluster": {"processes", "tls"},
    "machines": {"processes", "tls", "cluster"},
    "transports": {"wire", "tls", "processes", "worker", "cluster"},
    "dispatch": {"wire", "transports"},
    "placement": set(),
    "supervision": {"wire", "status", "worker", "transports", "dispatch", "placement"},
    "observers": {"transports", "dispatch", "supervision"},
    "remote_experts": {"status", "dispatch", "supervision"},
}


def rooms_of_workers() -> dict[str, set[str]]:
    """Which rooms of expert_workers import which."""
    arrows: dict[str, set[str]] = {}
    for path in files("expert_workers"):
        room = path.with_suffix("").parts[1]
        found = {name.split(".")[1] for name, _ in imports(path) if name.startswith("expert_workers.")}
        arrows.setdefault(room, set()).update(found - {room})
    del arrows["__init__"]
    return arrows


def test_the_rooms_of_the_workers_lead_one_way() -> None:
    order = list(ROOMS_OF_WORKERS)
    assert all(order.index(to) < order.index(room) for room, tos in ROOMS_OF_WORKERS.items() for to in tos)
    assert rooms_of_workers() == ROOMS_OF_WORKERS


def test_a_transport_is_known_by_its_row() -> None:
    """Its folder imports no other transport's, and nothing imports it but what opens the fleets."""
    folders = {path.parts[2] for path in files("expert_workers/transports") if len(path.parts) > 3}
    assert len(folders) >= 3
    for folder in folders:
        own = f"expert_workers/transports/{folder}/"
        users = importers(f"expert_workers.transports.{folder}", *PRODUCT)
        openers = {"coordinator/server/open_fleet.py", "coordinator/server/open_workers.py"}
        assert {path for path in users if not path.startswith(own)} <= openers
