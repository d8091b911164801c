"""Recordings of small engines, and what they say."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from coordinator.engine.recording.recorder import RoutingRecorder
from coordinator.engine.recording.trace_format import pack_header
from coordinator.engine.recording.trace_reader import Header, Recorded, TraceReader
from moe_model.config import ModelConfig


def header_for(config: ModelConfig) -> Header:
    return Header(
        1, "made", "f" * 64, config.moe_layers, config.n_experts, config.top_k, 1000, "tests", "2026-01-01"
    )


def recorder_for(
    path: Path, config: ModelConfig, most_tokens: int = 10_000, max_waiting_bytes: int = 1 << 20
) -> RoutingRecorder:
    """One that records at once."""
    header = header_for(config)
    recorder = RoutingRecorder(
        *(path, pack_header(asdict(header)), most_tokens, len(header.moe_layers)),
        max_waiting_bytes=max_waiting_bytes,
    )
    recorder.open()
    return recorder


def recorded(path: Path) -> dict[int, Recorded]:
    """By the number of the sequence in its engine."""
    trace = TraceReader.open(path)
    found = {each.number: each for each in trace.requests()}
    assert not trace.is_cut
    return found


def known(of: Recorded) -> dict[int, list[list[int]]]:
    """By position; K in the order of ids, as a router and a program may differ where two are equal."""
    return {int(at): np.sort(of.ids_TLK[at]).tolist() for at in np.flatnonzero(of.known_T)}
