"""The arguments of `expertmesh import`."""

import argparse
from pathlib import Path

from moe_model.names import DTYPE_NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="an assembled .pt or .safetensors file, or an output folder with such a file or with parts",
    )
    parser.add_argument("dest", metavar="DEST", help="the new checkpoint's folder")
    parser.add_argument(
        "--router",
        metavar="uniform|kaiming|FILE",
        help="for a folder of parts, which has no router: zeros, random, or weights or centroids from a file",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="the configuration (yaml or json) of a source that has none in or beside it",
    )
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, help="default: float32, or bfloat16 if that is what the source has"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --router kaiming (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace a checkpoint at DEST")
