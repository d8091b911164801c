"""The arguments that say what to generate, the same for `expertmesh generate` and `expertmesh client`.

Values are checked by whoever generates, so that both commands and every other client get the same answers.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    # Only the types: the messages load protobuf.
    from expertmesh.messages import GenerateOptions, Prompt

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
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "allowed_token_ids",
    "bad_words",
    "num_sequences",
    "stop_sequences",
    "include_stop_in_output",
    "time_limit",
    "logprobs",
    "json_schema",
    "json_object",
    "compact_json",
    "regex",
    "choices",
    "grammar",
    "allowed_experts",
    "denied_experts",
    "experts_per_token",
)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue")
    prompt.add_argument("--token-ids", type=token_ids, metavar="1,2,3", help="token ids to continue")
    prompt.add_argument("--chat", metavar="TEXT", help="a user's message, for models with a chat template")
    _add_stopping(parser)
    _add_shaping(parser)
    number = parser.add_argument
    number("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's own)")
    number("--top-k", type=int, metavar="K", help="draw from the K most likely tokens; 0 is off")
    number("--top-p", type=float, metavar="P", help="draw from the most likely tokens of mass P; 1 is off")
    number("--min-p", type=float, metavar="P", help="leave out tokens less likely than P times the best")
    number("--seed", type=int, metavar="S", help="fixes the random numbers (default: drawn)")
    number("--presence-penalty", type=float, metavar="P", help="subtracted from tokens in the output (0)")
    number("--frequency-penalty", type=float, metavar="P", help="subtracted for each time in the output (0)")
    number("--repetition-penalty", type=float, metavar="P", help="divides tokens of prompt and output (1)")
    number("--n", dest="num_sequences", type=int, metavar="N", help="sequences to generate (1)")
    number("--logprobs", type=int, metavar="N", help="log probabilities, also of the N best (--json)")


def _add_stopping(parser: argparse.ArgumentParser) -> None:
    number = parser.add_argument
    number("--max-tokens", type=int, metavar="N", help="most tokens to generate (default: what fits)")
    number("--min-tokens", type=int, metavar="N", help="tokens before EOS or any stop acts (0)")
    number("--stop-token-ids", type=token_ids, metavar="1,2", help="end after any of these tokens")
    number(
        "--stop",
        dest="stop_sequences",
        action="append",
        metavar="TEXT",
        help="end before this text; may be repeated",
    )
    number(
        "--include-stop",
        dest="include_stop_in_output",
        action="store_true",
        default=None,
        help="leave what it stopped at in the output",
    )
    number("--time-limit", type=float, metavar="S", help="end with what there is after so many seconds")
    number("--ignore-eos", action="store_true", default=None, help="go on after the end of the text")
    number(
        "--context-overflow",
        choices=OVERFLOWS,
        help="when the context is full: stop, or slide and see only the last tokens",
    )


def _add_shaping(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the output must be, and which experts may compute it")
    kind = group.add_mutually_exclusive_group()
    kind.add_argument("--json-schema", type=text_of, metavar="FILE", help="JSON that fits this schema")
    kind.add_argument("--json-object", action="store_true", default=None, help="any JSON object")
    kind.add_argument("--regex", metavar="REGEX", help="text that matches as a whole")
    kind.add_argument(
        "--choice", dest="choices", action="append", metavar="TEXT", help="one of these; repeat it"
    )
    kind.add_argument("--grammar", type=text_of, metavar="FILE", help="text of this grammar (Lark or EBNF)")
    number = group.add_argument
    number("--compact-json", action="store_true", default=None, help="JSON without white space")
    number("--allow-tokens", dest="allowed_token_ids", type=token_ids, metavar="5,6", help="draw no others")
    number(
        "--bad-word",
        dest="bad_words",
        action="append",
        metavar="TEXT",
        help="tokens of this text never follow each other; may be repeated",
    )
    number("--allow-experts", dest="allowed_experts", type=token_ids, metavar="0,1", help="use no others")
    number("--deny-experts", dest="denied_experts", type=token_ids, metavar="0,1", help="use these never")
    number("--experts-per-token", type=int, metavar="K", help="instead of the model's own number")


def prompt_of(args: argparse.Namespace) -> "Prompt":
    """The prompt as text, token ids or a conversation."""
    if args.chat is not None:
        return [{"role": "user", "content": args.chat}]
    return cast("str | list[int]", args.prompt if args.token_ids is None else args.token_ids)


def generation_options_of(args: argparse.Namespace) -> "GenerateOptions":
    """What was given; the rest is left to the model's and the server's defaults."""
    given = {name: getattr(args, name) for name in _OPTION_NAMES if getattr(args, name) is not None}
    return cast("GenerateOptions", given)


def text_of(path: str) -> str:
    """The text of a file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise argparse.ArgumentTypeError(f"{path[:80]!r} cannot be read as text") from None


def token_ids(text: str) -> list[int]:
    """`1,2,3`; nothing between the commas is an error, no ids at all are the server's to refuse."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a list like 1,2,3") from None
