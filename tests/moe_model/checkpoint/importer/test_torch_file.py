"""`.pt` files that are not what they should be; above all those that would run code."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_model.checkpoint.importer.torch_file import load_torch_file
from moe_model.errors import CheckpointError
from tests.examples import examples

PLAIN: dict[str, Any] = {
    "model_state_dict": {"a": torch.arange(6.0).view(2, 3)},
    "config": {"model": {"d_model": 8}},
}


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def saved(obj: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_both_formats(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(saved(PLAIN, zipped=zipped))
    loaded: Any = load_torch_file(path)
    assert torch.equal(loaded["model_state_dict"]["a"], PLAIN["model_state_dict"]["a"])
    assert loaded["config"] == PLAIN["config"]


@pytest.mark.parametrize("write", [saved, lambda obj: saved(obj, zipped=False), pickle.dumps])
@pytest.mark.parametrize("nested", [False, True])
def test_pickled_code_does_not_run(tmp_path: Path, write: Callable[[object], bytes], nested: bool) -> None:
    marker = tmp_path / "marker"
    evil = Evil(marker)
    (tmp_path / "x.pt").write_bytes(write({"model_state_dict": {"a": evil}} if nested else evil))
    with pytest.raises(CheckpointError, match=r"x\.pt: ") as raised:
        load_torch_file(tmp_path / "x.pt")
    assert not marker.exists()
    assert "\n" not in str(raised.value)
    pickle.loads(pickle.dumps(evil))
    assert marker.exists(), "the bait is real"


def test_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(saved({"a": Path("x")}))
    with pytest.raises(CheckpointError, match=r"x\.pt: holds a pickled pathlib\.\w+; only tensors"):
        load_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "data", [b"", b"garbage", saved(PLAIN)[:-30], saved(PLAIN, zipped=False)[:100], b"PK\x03\x04"]
)
def test_garbage_is_one_clear_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.pt: is not a readable PyTorch file, or is cut short$"):
        load_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["data.pkl", "data/0"])
def test_a_record_that_unpacks_to_more_than_the_file_has_is_refused(tmp_path: Path, name: str) -> None:
    """A file of a megabyte would take gigabytes."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(io.BytesIO(saved(PLAIN))) as whole, zipfile.ZipFile(path, "w") as packed:
        for record in whole.namelist():
            is_bomb = record.endswith(name)
            kind = zipfile.ZIP_DEFLATED if is_bomb else zipfile.ZIP_STORED
            packed.writestr(record, bytes(8 << 20) if is_bomb else whole.read(record), kind)
    with pytest.raises(CheckpointError, match=rf"x\.pt: its record '\w+/{name}' is compressed"):
        load_torch_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_cut_is_found(tmp_path: Path, zipped: bool) -> None:
    data = saved(PLAIN, zipped=zipped)
    for length in range(0, len(data), 1 + 10 * zipped):
        (tmp_path / "x.pt").write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"x\.pt: (is not|holds)"):
            load_torch_file(tmp_path / "x.pt")


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pt")
    for path in (tmp_path, tmp_path / "absent.pt", tmp_path / "fifo.pt"):
        with pytest.raises(CheckpointError, match="is not a file"):
            load_torch_file(path)


@settings(
    max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data(), st.sampled_from([saved(PLAIN), saved(PLAIN, zipped=False)]))
def test_any_bytes_are_an_object_or_a_checkpoint_error(
    tmp_path: Path, data: st.DataObject, original: bytes
) -> None:
    changed = bytearray(original)
    start = max(original.find(b"\x80\x02"), 0)
    for _ in range(data.draw(st.integers(1, 5))):
        changed[min(start + data.draw(st.integers(0, 400)), len(changed) - 1)] = data.draw(
            st.integers(0, 255)
        )
    (tmp_path / "x.pt").write_bytes(changed)
    try:
        load_torch_file(tmp_path / "x.pt")
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message
