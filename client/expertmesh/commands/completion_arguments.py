"""The arguments of `expertmesh completion`."""

import argparse

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "for this session, or as a line of the shell's start file:\n"
        '  bash, zsh   eval "$(expertmesh completion bash)", or zsh\n'
        "  fish        expertmesh completion fish | source"
    )
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS), help="which shell is to learn it")
