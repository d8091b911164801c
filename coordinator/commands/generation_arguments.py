"""The arguments that say what to generate, the same for `expertmesh generate` and `expertmesh client`.

Values are checked by whoever generates, so that both commands and every other client get the same answers.
"""

import argparse
from typing import cast

from coordinator.client_messages import GenerateOptions

OVERFLOWS = ("stop", "slide")
_OPTION_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "context_overflow",
)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument("--token-ids", type=token_ids, metavar="1,2,3", help="token ids to continue")
    number = parser.add_argument
    number("--max-tokens", type=int, metavar="N", help="most tokens to generate (default: what fits)")
    number("--min-tokens", type=int, metavar="N", help="tokens before any stop token acts")
    number("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's own)")
    number("--top-k", type=int, metavar="K", help="draw from the K most likely tokens; 0 is off")
    number("--top-p", type=float, metavar="P", help="draw from the most likely tokens of mass P; 1 is off")
    number("--min-p", type=float, metavar="P", help="leave out tokens less likely than P times the best")
    number("--seed", type=int, metavar="S", help="fixes the random numbers (default: drawn)")
    number("--stop-token-ids", type=token_ids, metavar="1,2", help="end after any of these tokens")
    parser.add_argument("--ignore-eos", action="store_true", default=None, help="go on after end of text")
    parser.add_argument(
        "--context-overflow",
        choices=OVERFLOWS,
        help="when the context is full: stop, or slide and see only the last tokens",
    )


def prompt_of(args: argparse.Namespace) -> str | list[int]:
    """The prompt as text or token ids."""
    return cast("str | list[int]", args.prompt if args.token_ids is None else args.token_ids)


def options_of(args: argparse.Namespace) -> GenerateOptions:
    """What was given; the rest is left to the model's and the server's defaults."""
    given = {name: getattr(args, name) for name in _OPTION_NAMES if getattr(args, name) is not None}
    return cast(GenerateOptions, given)


def token_ids(text: str) -> list[int]:
    """`1,2,3`; nothing between the commas is an error, no ids at all are the server's to refuse."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a list like 1,2,3") from None
