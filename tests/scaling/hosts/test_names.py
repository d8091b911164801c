"""Names of networks are short, however many there were."""

import os
from pathlib import Path

import pytest

from scaling.hosts import namespaces


def test_a_number_is_used_again_when_its_network_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "RUN_NETNS", tmp_path)
    first = namespaces._free_prefix()
    assert first == f"emx{os.getpid()}-1"
    router = tmp_path / f"{first}-router"
    router.touch()
    assert namespaces._free_prefix() == f"emx{os.getpid()}-2"
    router.unlink()
    assert namespaces._free_prefix() == first
