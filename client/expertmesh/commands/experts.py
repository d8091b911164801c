"""expertmesh experts: list, exchange, add and retire experts of a running server."""

import argparse
from collections.abc import Sequence

from expertmesh.commands.connection import connection
from expertmesh.control import ControlClient
from expertmesh.v1 import control_pb2 as pb

_LINE = "{:>5}  {:>6}  {:>7}  {:<7}  {}"


def run(args: argparse.Namespace) -> int:
    """Raises ClientError."""
    with ControlClient(args.address, connection=connection(args)) as control:
        match args.action:
            case "list":
                print("\n".join(table(control.experts())))
            case "replace":
                path = str(args.file.absolute())
                replaced = control.replace_expert(args.layer, args.expert, path, sha256=args.sha256)
                _tell("replaced", replaced.expert, replaced.seconds)
            case "add":
                path, router_path = str(args.file.absolute()), str(args.router_file.absolute())
                added = control.add_expert(args.layer, path, router_path, sha256=args.sha256)
                _tell("added", added.expert, added.seconds)
            case _:
                removed = control.remove_expert(args.layer, args.expert)
                _tell("removed", removed.expert, removed.seconds)
    return 0


def table(experts: Sequence[pb.ExpertModule]) -> list[str]:
    """A line per module, below one with the names of the columns."""
    return [
        _LINE.format("layer", "expert", "version", "workers", "sha256"),
        *(
            _LINE.format(
                module.layer,
                module.expert_id,
                module.version,
                "MISSING" if module.missing else ",".join(map(str, module.worker_ranks)) or "-",
                module.sha256 + ("  retiring" if module.retiring else ""),
            )
            for module in experts
        ),
    ]


def _tell(done: str, module: pb.ExpertModule, seconds: float) -> None:
    print(
        f"{done} expert {module.expert_id} of layer {module.layer}, version {module.version}, "
        f"in {seconds:.2f} s; new requests see it, running ones end as they began"
    )
