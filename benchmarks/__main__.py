"""`expertmesh bench NAME`: looks at the arguments first, and loads what they run when they are right."""

import runpy
import sys

from benchmarks.arguments import PARSERS


def main() -> None:
    name, *arguments = sys.argv[1:]
    PARSERS[name]().parse_args(arguments)
    sys.argv[:] = [f"expertmesh bench {name}", *arguments]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
