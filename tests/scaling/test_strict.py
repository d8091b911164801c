"""Files that people write: read, or refused in one line that names file and place."""

from pathlib import Path

import pytest

from moe_model.errors import ConfigError
from scaling.link import Link
from scaling.strict import load, read


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_and_json_are_read(tmp_path: Path) -> None:
    assert read(written(tmp_path, "gbit: 1\ndelay_ms: 0.5\n"), Link) == Link(1.0, 0.5)
    assert read(written(tmp_path, '{"loss_percent": 2}'), Link) == Link(loss_percent=2.0)


@pytest.mark.parametrize("text", ["1e-09", "5E-05", "1.5e3", "2e+1", ".5e1", "7", "0.25"])
def test_numbers_are_read_as_json_writes_them(tmp_path: Path, text: str) -> None:
    assert read(written(tmp_path, f'{{"delay_ms": {text}}}'), Link).delay_ms == float(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gbits: 1", "gbits"),
        ("gbit: fast", "gbit"),
        ("gbit: -1", "gbit"),
        ("gbit: .nan", "gbit"),
        ("loss_percent: 100", "loss_percent"),
        ("gbit: 1\ngbit: 2", "there twice"),
        ("1: 2", "no text"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: !!python/object:os.system {}", "neither YAML nor JSON"),
        ("[", "neither YAML nor JSON"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("- 1", "object"),
        ("", "object"),
        ("[" * 3000, "neither YAML nor JSON"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read(path, Link)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert said in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load(tmp_path / "absent.yaml")
