"""expertmesh experts: list, exchange, add and retire experts of a running server."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from coordinator.commands.connection_arguments import add_connection_arguments, connection
from coordinator.commands.engine_arguments import index
from coordinator.control_client import ControlClient
from protos.expertmesh.v1 import control_pb2 as pb

HELP = "list, exchange, add and retire experts of a running server"

_ACTIONS = {
    "list": "show the modules in use",
    "replace": "exchange an expert for another version",
    "add": "add an expert to a layer",
    "remove": "retire an expert of a layer",
}
_LINE = "{:>5}  {:>6}  {:>7}  {:<7}  {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    parsers = {name: actions.add_parser(name, help=text, description=text) for name, text in _ACTIONS.items()}
    for name, action in parsers.items():
        action.add_argument("address", metavar="HOST:PORT", help="address of the server's ControlService")
        if name != "list":
            action.add_argument("layer", type=index, metavar="LAYER", help="layer, from 0")
        if name in ("replace", "remove"):
            action.add_argument("expert", type=index, metavar="EXPERT", help="expert id")
        if name in ("replace", "add"):
            text = "safetensors file with the module, on the server's machine and on the workers'"
            action.add_argument("file", type=Path, metavar="FILE", help=text)
            action.add_argument("--sha256", metavar="HEX", help="refuse a file that has another SHA-256")
        if name == "add":
            text = "safetensors file with `router.weight`, the expert's row of the router"
            action.add_argument("router_file", type=Path, metavar="ROUTER_FILE", help=text)
        add_connection_arguments(action)


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
                ",".join(map(str, module.worker_ranks)) or "-",
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
