"""Which room of `scaling` may know which: the contract at the bottom, commands on top."""

from pathlib import Path

from tests.sources import files, importers, imports

# What all rooms share; it knows none of them.
CONTRACT = tuple(
    f"scaling.{name}"
    for name in (
        *("cell", "link", "loads.base", "costs.base", "machines", "observation", "prediction", "ranges"),
        *("shape", "store", "strict", "topology"),
    )
)
# Each room, and the rooms whose work it uses.
ROOMS = {
    "costs": (),
    "hosts": (),
    "workloads": (),
    "routing": (),
    "results": (),
    "loads": ("workloads",),
    "probe": ("costs", "simulation"),
    "planning": ("costs",),
    "simulation": ("costs", "routing"),
    "predict": ("simulation", "workloads"),
    "sweep": ("hosts", "loads", "predict", "probe", "results"),
}


def room_of(name: str) -> str:
    return name.split(".")[1]


def test_every_folder_is_a_room() -> None:
    found = {path.parts[1] for path in files("scaling") if len(path.parts) > 2}
    assert found <= {*ROOMS, "commands", "examples"}


def test_a_room_knows_only_those_it_works_with() -> None:
    for path in files("scaling"):
        if len(path.parts) == 2 or path.parts[1] == "commands":
            continue
        allowed = (path.parts[1], *ROOMS[path.parts[1]])
        known = [name for name, _ in imports(path) if name.startswith("scaling.")]
        known = [name for name in known if not name.startswith(CONTRACT)]
        assert [name for name in known if room_of(name) not in allowed] == [], path


def test_the_contract_knows_no_room() -> None:
    for path in files("scaling"):
        if ".".join(path.with_suffix("").parts) in CONTRACT:
            known = [name for name, _ in imports(path) if name.startswith("scaling.")]
            assert [name for name in known if not name.startswith(CONTRACT)] == [], path


def test_libraries_have_one_place() -> None:
    for package, rooms in (
        ("simpy", ("simulation",)),
        ("scipy", ("planning", "results", "probe")),
        ("pyarrow", ("results", "routing")),
        ("matplotlib", ("results", "routing")),
    ):
        assert {Path(path).parts[1] for path in importers(package, "scaling")} <= set(rooms), package
