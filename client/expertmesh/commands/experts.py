"""expertmesh experts: list, exchange, add and retire experts of a running server."""

import argparse
from collections.abc import Sequence

from expertmesh.commands.connection import connection
from expertmesh.commands.experts_arguments import ACTIONS, AddExpert, RemoveExpert, ReplaceExpert
from expertmesh.commands.options import options_of
from expertmesh.control import ControlClient
from expertmesh.v1 import control_pb2 as pb

_LINE = "{:>5}  {:>6}  {:>7}  {:<7}  {}"


def run(args: argparse.Namespace) -> int:
    """Raises ClientError."""
    arguments, _ = ACTIONS[args.action]
    given = options_of(args, arguments)
    with ControlClient(given.address, connection=connection(given.connection)) as control:
        match given:
            case ReplaceExpert(layer=layer, expert=expert, file=file, sha256=sha256):
                replaced = control.replace_expert(layer, expert, str(file.absolute()), sha256=sha256)
                _tell("replaced", replaced.expert, replaced.seconds)
            case AddExpert(layer=layer, file=file, router_file=router_file, sha256=sha256):
                paths = str(file.absolute()), str(router_file.absolute())
                added = control.add_expert(layer, *paths, sha256=sha256)
                _tell("added", added.expert, added.seconds)
            case RemoveExpert(layer=layer, expert=expert):
                removed = control.remove_expert(layer, expert)
                _tell("removed", removed.expert, removed.seconds)
            case _:
                print("\n".join(table(control.experts())))
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
