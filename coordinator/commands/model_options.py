"""Options of commands that plan or simulate a model, where they mean the same."""

from expertmesh.commands.options import Option
from expertmesh.commands.values import positive

MODEL = Option("MODEL", help="a checkpoint's folder, or the config.json of a family")
LAYERS = Option("--layers", parse=positive, metavar="N", help="of a config.json: the first N layers only")
TRACE = Option(
    "--trace",
    metavar="FILE|zipf:S[:SEED]",
    help="how experts are chosen: as a recorded routing trace has it, or by Zipf's law "
    "(default: every expert alike)",
)
JSON = Option("--json", help="print one JSON object")
