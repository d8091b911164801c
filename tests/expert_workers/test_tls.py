"""Certificates by names that each process finds in the folder of its own machine."""

import os
from pathlib import Path

import pytest

from expert_workers.tls import FOLDER_VARIABLE, TlsPaths, context
from moe_model.errors import ConfigError
from tests.coordinator.api.certificates import Authority, write_private

NAMES = TlsPaths("node.pem", "node.key", "ca.pem")


def test_names_are_below_the_folder_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    certificate, key = authority.sign()
    for name, data in (("node.pem", certificate), ("node.key", key), ("ca.pem", authority.pem)):
        write_private(tmp_path / name, data)
    with pytest.raises(ConfigError, match=r"data plane TLS ca\.pem: cannot be used"):
        context(NAMES, is_server=True)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    context(NAMES, is_server=True)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"none/ca\.pem: cannot be used"):
        context(NAMES, is_server=True)
    absolute = (os.path.join(tmp_path, name) for name in (NAMES.cert, NAMES.key, NAMES.ca))
    context(TlsPaths(*absolute), is_server=False)
