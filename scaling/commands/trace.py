"""expertmesh trace."""

import argparse
import sys
from pathlib import Path

import msgspec
import numpy as np

from coordinator.commands.trace_arguments import TraceArguments
from expertmesh.commands.options import options_of
from moe_model.errors import ConfigError
from scaling.routing.convert import convert
from scaling.routing.pictures import plot
from scaling.routing.summary import summarise
from scaling.routing.text import lines
from scaling.routing.trace_file import TraceFile


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError."""
    given = options_of(args, TraceArguments)
    if given.action == "convert":
        num_sequences = convert(given.file, _out(given), given.num_experts)
        sys.stdout.write(f"{given.out}: {num_sequences} sequences\n")
        return 0
    out = _out(given) if given.action == "plot" else None
    trace = TraceFile.open(given.file)
    found = summarise(trace)
    if out is not None:
        plot(found, np.array(trace.shares()), out)
        sys.stdout.write(f"{out}\n")
    elif given.as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(found))
    return 0


def _out(given: TraceArguments) -> Path:
    if given.out is None:
        raise ConfigError(f"trace {given.action}: say where to write it: --out FILE")
    return given.out
