"""What the machine must have for the tests of this folder that want hosts."""

import pytest

from scaling.hosts.namespaces import missing_capability


@pytest.fixture(scope="session")
def capable() -> None:
    """Skips, and says why, where no hosts can be made."""
    if missing := missing_capability():
        pytest.skip(missing)
