"""Who may read a file with secrets."""

import os
from pathlib import Path

import pytest

from moe_model.errors import ConfigError
from moe_model.files.private_files import MAX_FILE_BYTES, allowed_mode, check_private, read_bounded
from tests.coordinator.api.certificates import write_private


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_file(tmp_path: Path, mode: int) -> None:
    path = write_private(tmp_path / "f", b"x")
    path.chmod(mode)
    check_private(path, "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666, 0o602])
def test_a_file_of_others_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    path = write_private(tmp_path / "f", b"x")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"key {path}: .*run chmod 600"):
        check_private(path, "key")


@pytest.mark.parametrize(
    ("owner", "user", "mode"),
    [(0, 0, 0o600), (1000, 1000, 0o600), (0, 1000, 0o640), (1000, 0, None), (1000, 1001, None)],
)
def test_a_group_may_read_what_belongs_to_root(owner: int, user: int, mode: int | None) -> None:
    """That is how secrets are mounted for a process that is not root."""
    assert allowed_mode(owner, user) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write_private(tmp_path / "f", b"x")
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to another user"):
        check_private(path, "key")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        check_private(tmp_path / "none", "key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="is not a file"):
            check_private(path, "key")
        with pytest.raises(ConfigError, match="is not a file"):
            read_bounded(path, "key")


@pytest.mark.parametrize(("size", "fits"), [(MAX_FILE_BYTES, True), (MAX_FILE_BYTES + 1, False)])
def test_a_file_is_read_up_to_a_size(tmp_path: Path, size: int, fits: bool) -> None:
    path = write_private(tmp_path / "f", b"x" * size)
    if fits:
        assert len(read_bounded(path, "key")) == size
    else:
        with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
            read_bounded(path, "key")
