"""One pass over this machine, from a process of its own, into a file.

python -P -m scaling.probe.pass_process FILE
"""

import sys
from pathlib import Path

from coordinator.config.engine import EngineConfig
from coordinator.server.process import configure_process
from expertmesh.commands.signals import sigterm_exits
from scaling.probe.passes import depth_between_rounds, measured_pass, write_pass


def main() -> int:
    with sigterm_exits():
        configure_process(EngineConfig())
        write_pass(Path(sys.argv[1]), measured_pass(depth_between_rounds(), print))
    return 0


if __name__ == "__main__":
    sys.exit(main())
