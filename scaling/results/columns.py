"""A cell and an observation as flat rows: a column for each thing, with the unit in its name."""

from typing import Any

import msgspec

from scaling.cell import Cell
from scaling.observation import QUANTILES, Observation, Spread

Row = dict[str, Any]


def cell_columns(key: str, cell: Cell) -> Row:
    """What describes a cell; what lists or maps is JSON."""
    return {
        "cell": key,
        "label": cell.label,
        **dimensions(cell),
        "hosts_json": _json(cell.hosts) if cell.hosts else None,
        "serve_json": _json(cell.serve) if cell.serve else None,
    }


def dimensions(cell: Cell) -> Row:
    """What cells may differ in, one value each; None: not so."""
    load, fault, link = cell.load, cell.fault, cell.link
    return {
        "model": cell.model,
        "dtype": cell.dtype,
        "layers": cell.layers,
        "workers": cell.workers,
        "replicas": cell.replicas,
        "where": cell.where,
        "transport": cell.transport,
        "wire_dtype": cell.wire_dtype,
        "combine": cell.combine,
        "skew_zipf": cell.skew.zipf,
        "skew_how": None if cell.skew.zipf is None else cell.skew.how,
        "link_gbit_per_s": link.gbit,
        "link_delay_ms": link.delay_ms,
        "link_loss_percent": link.loss_percent,
        "num_hosts_capped": len(cell.hosts),
        "fault": None if fault is None else fault.kind,
        "fault_at_s": None if fault is None else fault.at_s,
        "fault_worker": None if fault is None else fault.worker,
        "fault_seconds": None if fault is None else fault.seconds,
        "fault_share": None if fault is None or fault.kind != "slow" else fault.share,
        "plan": cell.plan,
        "concurrency": load.concurrency,
        "rate_per_s": load.rate,
        "num_requests_asked": load.num_requests,
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "lengths": load.lengths,
        "length_spread": None if load.lengths == "exact" else load.length_spread,
        "load_tool": load.tool,
        "load_trace": load.trace,
        "load_trace_format": load.trace_format,
    }


def observation_columns(observation: Observation) -> Row:
    """Nested lists (`loads_LE`, `timeline`) stay lists: Parquet has them, CSV gets JSON."""
    row: Row = {}
    for name in Observation.__struct_fields__:
        value = getattr(observation, name)
        if name == "cell":
            continue
        if name in ("first_token_ms", "per_token_ms", "gap_ms"):
            row.update(_spread(name.removesuffix("_ms"), value))
        elif name in ("cpu_s", "memory_mb", "split_ms"):
            stem, _, unit = name.rpartition("_")
            row.update({f"{stem}_{part}_{unit}": float(of) for part, of in sorted(value.items())})
        elif name == "errors":
            row["errors_json"] = _json(value) if value else None
        elif name == "notes":
            row[name] = "; ".join(value) or None
        elif name == "seconds":
            row["load_s"] = value
        elif name == "timeline":
            row["tokens_per_tenth_s"] = value or None
        else:
            row[name] = value if value != [] else None
    return row


def _spread(stem: str, spread: Spread | None) -> Row:
    row: Row = {f"{stem}_mean_ms": None if spread is None else spread.mean}
    for index, percent in enumerate(QUANTILES):
        known = spread is not None and index < len(spread.quantiles)
        row[f"{stem}_p{percent}_ms"] = spread.quantiles[index] if spread is not None and known else None
    row[f"num_{stem}s"] = None if spread is None else spread.num
    return row


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
