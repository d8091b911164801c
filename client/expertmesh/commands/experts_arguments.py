"""The arguments of `expertmesh experts`, one set for each action."""

import argparse
from pathlib import Path

from expertmesh.commands.connection_arguments import add_connection_arguments
from expertmesh.commands.values import index

ACTIONS = {
    "list": "show the modules in use",
    "replace": "exchange an expert for another version",
    "add": "add an expert to a layer",
    "remove": "retire an expert of a layer",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    parsers = {name: actions.add_parser(name, help=text, description=text) for name, text in ACTIONS.items()}
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
