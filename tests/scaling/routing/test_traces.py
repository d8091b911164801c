"""Summaries, pictures and other forms of traces, of files that a recorder's format makes."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from coordinator.commands.trace_arguments import TraceArguments
from coordinator.engine.recording.trace_format import BEGIN, END, ENTRY, ROWS, Block, pack_block, pack_header
from coordinator.engine.recording.trace_reader import Header
from expertmesh.command_line import main
from moe_model.errors import ConfigError
from moe_model.layers.zipf_choice import draw_rows, zipf_inclusion
from scaling.routing.convert import convert
from scaling.routing.loads import loads_of
from scaling.routing.sampler import Sampler
from scaling.routing.summary import MAX_WINDOWS, summarise, with_copies
from scaling.routing.trace_file import TraceFile

HEADER = Header(1, "made", "f" * 64, (1, 3), 8, 2, 10, "tests", "2026-01-01")


def zipf_rows(num: int, seed: int = 0) -> np.ndarray:
    """ids_TLK of two layers."""
    layers = [draw_rows(zipf_inclusion(8, 2, 1.2, layer, seed), num, layer, seed) for layer in (1, 3)]
    return np.stack(layers, axis=1)


def write(path: Path, sequences: list[np.ndarray], first: int = 0) -> Path:
    """Each as one that has ended; what is before `first` was cached."""
    with path.open("wb") as file:
        file.write(pack_header(asdict(HEADER)))
        for number, ids_TLK in enumerate(sequences):
            entries = [
                (BEGIN, 0, 0, number, number, 4, 0),
                (ROWS, 0, 0, number, first, len(ids_TLK), 0),
                (END, 0, 0, number, first + len(ids_TLK) + 1, 0, 0),
            ]
            file.write(pack_block(Block(np.array(entries, dtype=ENTRY), ids_TLK)))
    return path


def test_a_summary_of_a_law(tmp_path: Path) -> None:
    path = write(tmp_path / "trace", [zipf_rows(4096)])
    found = summarise(TraceFile.open(path))
    assert found.num_tokens == 4096
    assert [layer.layer for layer in found.layers] == [1, 3]
    first = 1 / sum(rank**-1.2 for rank in range(1, 9))
    for layer in found.layers:
        assert layer.max_share == pytest.approx(first, abs=0.005)
        assert layer.max_over_mean == pytest.approx(8 * first, abs=0.04)
        assert layer.experts_for_half == 2
        assert layer.with_copies[1] < layer.max_over_mean
    # Nothing drifts, but by chance.
    assert max(found.drift) < 3 * found.drift_by_chance
    assert np.array(loads_of(path)).sum(1) == pytest.approx([1, 1])
    rows_E = Sampler.of_trace(path).draw(1, 20_000, np.random.default_rng(0))
    assert rows_E / rows_E.sum() == pytest.approx(np.array(loads_of(path))[1], abs=0.01)


def test_a_load_that_moves_is_drift(tmp_path: Path) -> None:
    found = summarise(TraceFile.open(write(tmp_path / "trace", [zipf_rows(2048), zipf_rows(2048, seed=5)])))
    assert min(found.drift) > 3 * found.drift_by_chance


def test_experts_that_go_together_are_named(tmp_path: Path) -> None:
    ids_TLK = zipf_rows(2048)
    ids_TLK[:400, 0] = [6, 7]
    ids_TLK[:400, 1] = [2, 5]
    found = summarise(TraceFile.open(write(tmp_path / "trace", [ids_TLK])))
    best = found.within[0]
    assert (best.layer, best.first, best.second) == (3, 2, 5)
    assert (found.between[0].first, found.between[0].second) == (6, 2)
    assert found.between[0].share > 0.5


def test_copies_even_out() -> None:
    counts_E = np.array([60, 20, 10, 10])
    assert with_copies(counts_E, 0) == 60 / 25
    assert with_copies(counts_E, 1) == 30 / 20
    assert with_copies(counts_E, 2) == pytest.approx(20 / (100 / 6))


@pytest.mark.parametrize("rows", [0, 1])
def test_nearly_nothing(tmp_path: Path, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "trace", [zipf_rows(64)[:rows]])
    assert main(["trace", "summary", str(path)]) == 0
    assert ("no rows" in capsys.readouterr().out) == (rows == 0)
    if rows == 0:
        with pytest.raises(ConfigError, match="has no rows"):
            loads_of(path)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "trace", [zipf_rows(2048)]))
    assert main(["trace", "summary", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_experts"] == 8
    for suffix in ("svg", "png"):
        assert main(["trace", "plot", path, "--out", str(tmp_path / f"x.{suffix}")]) == 0
        assert (tmp_path / f"x.{suffix}").stat().st_size > 10_000
    assert main(["trace", "plot", path, "--out", str(tmp_path / "x.txt")]) != 0
    assert main(["trace", "plot", path]) != 0
    assert main(["trace", "convert", path, "--out", str(tmp_path / "x.doc")]) != 0
    assert main(["trace", "summary", __file__]) != 0
    assert "no routing trace" in capsys.readouterr().err


def test_other_forms_say_the_same(tmp_path: Path) -> None:
    sequences = [zipf_rows(64), zipf_rows(64, 3)[:10]]
    path = write(tmp_path / "trace", sequences, first=3)
    for suffix in ("npz", "jsonl", "parquet"):
        assert convert(path, tmp_path / f"x.{suffix}") == 2
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["r000000_0", "r000001_0"]
        assert (arrays["r000001_0"][3:] == sequences[1]).all()
        assert (arrays["r000001_0"][:3] == 0xFF).all()
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert lines[1]["routed_experts"] == [None, None, None, *sequences[1].tolist()]
    table = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert len(table) == (64 + 10) * 2
    last = {"request": 1, "index": 0, "position": 12, "layer": 3, "experts": sequences[1][9, 1].tolist()}
    assert table[-1] == last
    assert convert(tmp_path / "x.npz", tmp_path / "again", 8) == 2
    again = list(TraceFile.open(tmp_path / "again").requests())
    assert (again[0].ids_TLK[3:] == sequences[0]).all()
    assert again[0].known_T.tolist() == [False] * 3 + [True] * 64
    assert TraceFile.open(tmp_path / "again").counts().tolist() == TraceFile.open(path).counts().tolist()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("plot", Path("t"), None, True), "--json is of summary"),
        (("summary", Path("t"), Path("o")), "--out is of plot and convert"),
        (("convert", Path("t"), Path("o.npz"), False, 8), "--experts is of convert, of an .npz"),
    ],
)
def test_options_of_another_action_are_refused(given: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TraceArguments(*given)


def test_arrays_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for arrays in ({"a": np.zeros((2, 2))}, {"a": np.zeros((2, 2, 2))}, {"a": np.array([[["x"]]])}, {}):
        np.savez(path, **arrays)
        with pytest.raises(ConfigError, match=r"x\.npz"):
            convert(path, tmp_path / "out")
    np.savez(path, a=np.array([[[None]]], dtype=object))
    with pytest.raises(ConfigError, match=r"x\.npz"):
        convert(path, tmp_path / "out")
    np.savez_compressed(path, a=np.arange(4096, dtype=np.uint16).reshape(-1, 2, 2))
    damaged = bytearray(path.read_bytes())
    damaged[200:400] = bytes(255 - each for each in damaged[200:400])
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"x\.npz"):
        convert(path, tmp_path / "out")
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ConfigError, match=r"x\.npz"):
        convert(path, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["x.npz"]


def blocks(num_tokens: int) -> Iterator[bytes]:
    ids_TLK = zipf_rows(65_536)
    yield pack_block(Block(np.array([(BEGIN, 0, 0, 0, 0, 1, 0)], dtype=ENTRY), ids_TLK[:0]))
    for first in range(0, num_tokens, len(ids_TLK)):
        entries = [(ROWS, 0, 0, 0, first, len(ids_TLK), 0)]
        yield pack_block(Block(np.array(entries, dtype=ENTRY), ids_TLK))


@pytest.mark.slow
def test_a_huge_file_is_summed_up_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with path.open("wb") as file:
        file.write(pack_header(asdict(HEADER)))
        file.writelines(blocks(25_000_000))
    found = summarise(TraceFile.open(path))
    assert found.num_tokens * 4 >= 100_000_000
    assert 2 <= len(found.drift) <= MAX_WINDOWS
