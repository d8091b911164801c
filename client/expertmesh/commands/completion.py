"""expertmesh completion: the lines that teach a shell to complete this command's names and options.

The shell asks the command itself at every press of TAB, so that it knows what this version knows.
"""

import argparse

from argcomplete import autocomplete
from argcomplete.shell_integration import shellcode


def run(args: argparse.Namespace) -> int:
    print(shellcode(["expertmesh"], True, args.shell))
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Tells the shell, which has asked through the environment, what may come next. Does not return."""
    autocomplete(parser, always_complete_options="long")
