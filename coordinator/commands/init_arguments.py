"""The arguments of `expertmesh init`."""

import argparse
from pathlib import Path

from moe_model.names import DTYPE_NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dest", metavar="DEST", help="the new checkpoint's folder")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="sizes (yaml or json); default: the 54.6 M parameter model",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same model (default: 0)")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="float32")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint at DEST")
