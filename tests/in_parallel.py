"""How pytest-xdist (`pytest -n 2`) shares the tests out among its processes.

A file's tests stay together, so that what its fixtures start is started once. So do all tests of a folder in
`TOGETHER`, which start Ray clusters and servers: two of these never run at the same time. They come first;
the many small tests then fill what time is left in all processes.
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/integration/", "tests/scenarios/", "tests/chaos/")


def group_of(nodeid: str) -> str:
    """What a test must not be parted from: its file, or its folder."""
    return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


class Grouped(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Grouped:
    config.option.loadscopereorder = False  # Groups go out as they were collected.
    return Grouped(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: group_of(item.nodeid) not in TOGETHER)
