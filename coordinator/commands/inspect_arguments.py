"""The arguments of `expertmesh inspect`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the checkpoint's folder")
    parser.add_argument(
        "--verify", action="store_true", help="read every file and check its SHA-256 and tensors"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
