"""What a server records of its routing, and forces of it, as its options say. Part of the composition
root."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from coordinator.config.routing import ForcedRouting, RoutingConfig
from coordinator.engine.core.forcing import Forcing, HashedForcing, ReplayedForcing
from coordinator.engine.recording.recorder import RoutingRecorder
from coordinator.engine.recording.trace_format import pack_header
from coordinator.engine.recording.trace_reader import Header, TraceReader
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.layers.forced_experts import ForcedTable, zipf_table

logger = logging.getLogger(__name__)

# Bytes of a replayed trace's ids, which are kept in memory.
MAX_REPLAYED_BYTES = 1 << 30
# The sequence of a server's warm-up is the one before.
FIRST_KEY = 1


@contextmanager
def recording(
    checkpoint: Checkpoint, config: RoutingConfig, told: Callable[[int, bool], None]
) -> Iterator[RoutingRecorder | None]:
    """None where nothing is recorded. Raises ConfigError where the file cannot be made."""
    if config.record is None:
        yield None
        return
    header = header_of(checkpoint, config.record_tokens)
    recorder = RoutingRecorder(
        config.record, pack_header(asdict(header)), config.record_tokens, len(header.moe_layers), told
    )
    try:
        yield recorder
    finally:
        recorder.close()


def header_of(checkpoint: Checkpoint, most_tokens: int) -> Header:
    model = checkpoint.config
    return Header(
        version=1,
        name=Path(checkpoint.location).name,
        model=checkpoint.fingerprint,
        moe_layers=model.moe_layers,
        num_experts=model.n_experts,
        top_k=model.top_k,
        most_tokens=most_tokens,
        made_by=f"expertmesh {metadata.version('expertmesh')}",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def forcing_of(force: ForcedRouting | None, model: ModelConfig, first_key: int = FIRST_KEY) -> Forcing | None:
    """None where routers choose. Raises ConfigError for a trace that does not fit the model."""
    if force is None:
        return None
    logger.warning(
        "--force-routing %s: experts are forced, outputs are NOT the model's; for measurements only", force
    )
    if force.exponent is None:
        return replayed(Path(force.path), model, first_key)
    n_experts, top_k = model.n_experts, model.top_k
    num_candidates = min(2 * top_k, n_experts) if force.is_masked else top_k
    return HashedForcing(
        zipf_table(model.moe_layers, n_experts, top_k, force.exponent, force.seed, num_candidates)
    )


def replayed(path: Path, model: ModelConfig, first_key: int) -> ReplayedForcing:
    """Sequences in the order of their numbers. Raises ConfigError."""
    trace = TraceReader.open(path)
    there, ours = trace.header, (model.moe_layers, model.n_experts, model.top_k)
    if (there.moe_layers, there.num_experts, there.top_k) != ours:
        raise ConfigError(
            f"--force-routing: {path} is of {len(there.moe_layers)} layers with {there.top_k} of "
            f"{there.num_experts} experts, the model has {len(ours[0])} with {ours[2]} of {ours[1]}"
        )
    found: dict[int, np.ndarray] = {}
    num_bytes = 0
    for each in trace.requests():
        if each.known_T.any():
            rows_TLK = _rows(each.ids_TLK, each.known_T, model.n_experts, model.top_k)
            found[each.number] = rows_TLK
            num_bytes += rows_TLK.nbytes
        if num_bytes > MAX_REPLAYED_BYTES:
            raise ConfigError(f"--force-routing: {path}: more than {MAX_REPLAYED_BYTES >> 20} MiB of ids")
    if not found:
        raise ConfigError(f"--force-routing: {path}: has no rows")
    rows = [found[number] for number in sorted(found)]
    lengths_N = np.array([len(rows_TLK) for rows_TLK in rows])
    ids_LPK = torch.from_numpy(np.ascontiguousarray(np.concatenate(rows).transpose(1, 0, 2)))
    orders = {layer: order for order, layer in enumerate(model.moe_layers)}
    table = ForcedTable(ids_LPK, orders, model.n_experts, model.top_k)
    return ReplayedForcing(table, np.cumsum(lengths_N) - lengths_N, lengths_N, first_key)


def _rows(ids_TLK: np.ndarray, known_T: np.ndarray, n_experts: int, top_k: int) -> np.ndarray:
    """int16, K different experts of the model in each row. A token that is not known goes the way of one that
    is; an expert that is absent, or not the model's, is another one: the first that the row does not have."""
    known = np.flatnonzero(known_T)
    at_T = np.where(known_T, np.arange(len(known_T)), known[np.arange(len(known_T)) % len(known)])
    ids_RK = ids_TLK[at_T][:, :, :top_k].reshape(-1, min(top_k, ids_TLK.shape[2]))
    ids_RK = np.pad(ids_RK, ((0, 0), (0, top_k - ids_RK.shape[1])), constant_values=n_experts)
    ordered_RK = np.sort(ids_RK, axis=1)
    bad_R = (ordered_RK[:, -1] >= n_experts) | (ordered_RK[:, 1:] == ordered_RK[:, :-1]).any(1)
    for row in np.flatnonzero(bad_R):
        ids = list(dict.fromkeys(each for each in ids_RK[row].tolist() if each < n_experts))
        ids += [each for each in range(n_experts) if each not in ids][: top_k - len(ids)]
        ids_RK[row] = ids
    found: np.ndarray = ids_RK.astype(np.int16).reshape(len(at_T), -1, top_k)
    return found
