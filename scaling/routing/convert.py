"""A routing trace in forms that other programs read, and one out of arrays of another system.

.npz        an array of (tokens-1, MoE layers, K) for each sequence, `r000007_0` of request 7 and sequence 0;
the
            largest number of its type stands for what is not known. The form of R3 ("rollout routing replay",
            Ma et al., "Stabilizing MoE Reinforcement Learning by Aligning Training and Inference Routers",
            2025, arXiv:2510.11370), which vLLM's and SGLang's `routed_experts` have
.jsonl      a line for each sequence; null for a token that is not known
.parquet    a row for each token and layer
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.engine.recording.trace_format import (
    ABSENT,
    BEGIN,
    END,
    ENTRY,
    ROWS,
    Block,
    pack_block,
    pack_header,
)
from coordinator.engine.recording.trace_reader import MAX_LAYERS, Header, Recorded
from moe_model.errors import ConfigError
from scaling.routing.trace_file import TraceFile, highest

# Of an .npz that is read: one array in memory, and all of them.
MAX_ARRAY_BYTES, MAX_ALL_BYTES = 1 << 31, 1 << 36
# Tokens of one block of a trace that is made.
BLOCK_TOKENS = 1024


def convert(source: Path, out: Path, num_experts: int | None = None) -> int:
    """By what the names end with; returns the number of sequences. Raises ConfigError; then `out` is not
    there, or as it was."""
    beside = out.with_name(f".{out.name}.part")
    try:
        if source.suffix == ".npz":
            num_sequences = _to_trace(source, beside, num_experts)
        elif out.suffix in _WRITERS:
            num_sequences = _WRITERS[out.suffix](TraceFile.open(source), beside)
        else:
            raise ConfigError(f"--out {out}: convert writes {', '.join(_WRITERS)}")
        beside.replace(out)
    except OSError as error:
        raise ConfigError(f"{error.filename or out}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
    return num_sequences


def _to_npz(trace: TraceFile, out: Path) -> int:
    """One sequence at a time in memory."""
    num_sequences = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for each in trace.requests():
            ids_TLK = each.ids_TLK
            is_small = trace.header.num_experts < 0xFF and not each.version
            with file.open(f"{_name(each)}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, ids_TLK.astype(np.uint8) if is_small else ids_TLK)
            num_sequences += 1
    return num_sequences


def _to_jsonl(trace: TraceFile, out: Path) -> int:
    num_sequences = 0
    with out.open("w", encoding="utf-8") as file:
        for each in trace.requests():
            of_tokens = zip(each.ids_TLK, each.known_T, strict=True)
            said = {
                "request": each.request,
                "index": each.index,
                "version": each.version,
                "num_prompt_tokens": each.num_prompt,
                "is_whole": each.is_whole,
                "routed_experts": [ids_LK.tolist() if known else None for ids_LK, known in of_tokens],
            }
            file.write(json.dumps(said, separators=(",", ":")) + "\n")
            num_sequences += 1
    return num_sequences


def _to_parquet(trace: TraceFile, out: Path) -> int:
    num_sequences = 0
    names = ("request", "index", "position", "layer")
    schema = pa.schema([*((name, pa.int32()) for name in names), ("experts", pa.list_(pa.uint16()))])
    with pq.ParquetWriter(out, schema) as writer:
        for each in trace.requests():
            at_T = np.flatnonzero(each.known_T)
            ids_NK = each.ids_TLK[at_T].reshape(-1, each.ids_TLK.shape[2])
            is_there = ids_NK != ABSENT
            ends = np.concatenate([[0], np.cumsum(is_there.sum(1))]).astype(np.int32)
            columns = [
                np.full(len(ids_NK), each.request, dtype=np.int32),
                np.full(len(ids_NK), each.index, dtype=np.int32),
                np.repeat(at_T, len(trace.header.moe_layers)).astype(np.int32),
                np.tile(np.array(trace.header.moe_layers, dtype=np.int32), len(at_T)),
            ]
            lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(ids_NK[is_there]))
            writer.write_table(pa.Table.from_arrays([*map(pa.array, columns), lists], schema=schema))
            num_sequences += 1
    return num_sequences


_WRITERS = {".npz": _to_npz, ".jsonl": _to_jsonl, ".parquet": _to_parquet}


def _name(each: Recorded) -> str:
    return f"r{each.request:06d}_{each.index}"


def _to_trace(source: Path, out: Path, num_experts: int | None) -> int:
    """Twice over the arrays: how many layers and experts there are must be said first."""
    most, shapes = -1, set()
    for ids_TLK in _arrays(source):
        shapes.add(ids_TLK.shape[1:])
        most = max(most, highest(ids_TLK))
    if len(shapes) != 1 or most < 0:
        raise ConfigError(f"{source}: arrays of (tokens-1, layers, K) with the same layers and K: {shapes}")
    ((num_layers, top_k),) = shapes
    if not 0 < num_layers <= MAX_LAYERS or not 0 < top_k < 256:
        raise ConfigError(f"{source}: {num_layers} layers, {top_k} experts per token")
    if num_experts is not None and not most < num_experts < ABSENT:
        raise ConfigError(f"--experts {num_experts}: {source} has an expert {most}")
    started = datetime.now(UTC).isoformat(timespec="seconds")
    sizes = num_experts or most + 1, top_k
    header = Header(1, source.name, "", tuple(range(num_layers)), *sizes, 1 << 62, "npz", started)
    number = -1
    with out.open("wb") as file:
        file.write(pack_header(asdict(header)))
        for number, ids_TLK in enumerate(_arrays(source)):
            for block in _blocks(number, ids_TLK):
                file.write(pack_block(block))
    return number + 1


def _blocks(number: int, ids_TLK: np.ndarray) -> Iterator[Block]:
    """Of one sequence; what its prompt was is not known."""
    empty_TLK = ids_TLK[:0]
    yield Block(np.array([(BEGIN, 0, 0, number, number, 0, 0)], dtype=ENTRY), empty_TLK)
    known_T = (ids_TLK != ABSENT).any((1, 2))
    changes = np.flatnonzero(np.diff(known_T, prepend=False, append=False))
    pieces = [
        (first, min(first + BLOCK_TOKENS, int(end)))
        for start, end in changes.reshape(-1, 2)
        for first in range(int(start), int(end), BLOCK_TOKENS)
    ]
    for first, end in pieces:
        rows_TLK = ids_TLK[first:end]
        yield Block(np.array([(ROWS, 0, 0, number, first, len(rows_TLK), 0)], dtype=ENTRY), rows_TLK)
    yield Block(np.array([(END, 0, 0, number, len(ids_TLK) + 1, 0, 0)], dtype=ENTRY), empty_TLK)


def _arrays(source: Path) -> Iterator[np.ndarray]:
    """uint16, in the order of their names; of no other type, and no larger than memory has room for. Raises
    ConfigError."""
    try:
        with zipfile.ZipFile(source) as file:
            members = sorted(file.infolist(), key=lambda member: member.filename)
            if sum(member.file_size for member in members) > MAX_ALL_BYTES:
                raise ConfigError(f"{source}: more than {MAX_ALL_BYTES >> 30} GiB")
            for member in members:
                if member.file_size > MAX_ARRAY_BYTES:
                    raise ConfigError(f"{source}: {member.filename} is too large")
                with file.open(member) as data:
                    found = np.lib.format.read_array(data, allow_pickle=False)
                yield _checked(found, f"{source}: {member.filename}")
    # A damaged stream of bytes is zlib's error, an encrypted one a RuntimeError.
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError) as error:
        raise ConfigError(f"{source}: no .npz of arrays: {' '.join(str(error).split())[:200]}") from error


def _checked(found: np.ndarray, name: str) -> np.ndarray:
    if found.ndim != 3 or found.dtype.kind not in "iu":
        raise ConfigError(f"{name}: whole numbers of shape (tokens-1, layers, K) are wanted")
    # -1, or the largest number of the type, is what is not known.
    is_absent = (found < 0) if found.dtype.kind == "i" else (found == np.iinfo(found.dtype).max)
    if (found[~is_absent] >= ABSENT).any():
        raise ConfigError(f"{name}: an expert above {ABSENT - 1}")
    ids_TLK = found.astype(np.uint16)
    ids_TLK[is_absent] = ABSENT
    return ids_TLK
