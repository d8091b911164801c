"""One server of the bundled model for all tests that only ask it."""

from collections.abc import Iterator

import pytest

from tests.integration.processes import DEMO_CHECKPOINT, Server

CHAT_TEMPLATE = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Under the name `demo`, with a chat template, and with all that requests may ask for."""
    folder = tmp_path_factory.mktemp("demo-server")
    template = folder / "chat.jinja"
    template.write_text(CHAT_TEMPLATE)
    options = ["--workers", "0", "--model-name", "demo", "--chat-template", str(template), "--routed-experts"]
    with Server(str(DEMO_CHECKPOINT), *options, log=folder / "log") as running:
        running.wait_ready()
        yield running
