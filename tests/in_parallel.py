"""How pytest-xdist (`pytest -n 2`) shares the tests out among its processes.

A file's tests stay together, so that what its fixtures start is started once. So do those that share more:
the tests of Ray clusters, of which two never run at the same time, and those that ask one server. They come
first; the many small tests then fill what time is left in all processes.
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

# By how a test's path begins; the first that fits counts.
TOGETHER = {
    "tests/integration/test_docs.py": "demo server",
    "tests/integration/test_one_answer.py": "demo server",
    "tests/integration/test_openai.py": "demo server",
    "tests/integration/test_readme.py": "demo server",
    "tests/integration/test_client_alone.py": "servers",
    "tests/integration/test_client_deadlines.py": "servers",
    "tests/integration/test_drafts.py": "servers",
    "tests/integration/test_hostile_templates.py": "servers",
    "tests/integration/test_layered_family.py": "servers",
    "tests/integration/test_nothing_leaks.py": "servers",
    "tests/integration/test_ray_preflight.py": "servers",
    "tests/integration/": "clusters",
    "tests/scenarios/": "clusters",
    "tests/chaos/": "clusters",
    "tests/scaling/hosts/": "clusters",
    "tests/deploy/test_live_compose.py": "clusters",
    "tests/deploy/test_live_prometheus.py": "clusters",
}
_FIRST = ("clusters", "demo server", "servers")


def group_of(nodeid: str) -> str:
    """What a test must not be parted from: its file, or all that share something with it."""
    return next(
        (group for start, group in TOGETHER.items() if nodeid.startswith(start)), nodeid.partition("::")[0]
    )


class Grouped(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Grouped:
    config.option.loadscopereorder = False  # Groups go out as they were collected.
    return Grouped(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {group: place for place, group in enumerate(_FIRST)}
    items.sort(key=lambda item: order.get(group_of(item.nodeid), len(order)))
