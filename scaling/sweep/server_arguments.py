"""What a cell says of its server, as arguments of `expertmesh serve`."""

from pathlib import Path

from scaling.cell import Cell, Skew


def server_arguments(cell: Cell, base: Path, seed: int) -> list[str]:
    """All but where it runs and how many workers there are. `seed`: of a skew, the experiment's."""
    found = [f"--dtype={cell.dtype}", "--routed-experts"]
    if cell.workers:
        found += [
            f"--replicas={cell.replicas}",
            f"--transport={cell.transport}",
            f"--wire-dtype={cell.wire_dtype}",
            f"--combine={cell.combine}",
        ]
    if cell.plan is not None:
        found.append(f"--plan={(base / cell.plan).resolve()}")
    if cell.skew.zipf is not None:
        found.append(f"--force-routing={_forced(cell.skew, seed)}")
    for name, value in cell.serve.items():
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        else:
            found.append(f"--{name}={value}")
    return found


def _forced(skew: Skew, seed: int) -> str:
    kind = "zipf" if skew.how == "forced" else "masked-zipf"
    return f"{kind}:{skew.zipf:g}:{seed}"
