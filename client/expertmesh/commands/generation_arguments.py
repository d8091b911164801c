"""The arguments that say what to generate, the same for `expertmesh generate` and `expertmesh client`.

The server checks the values, or `generate` as a server would, so that every client gets the same answers.
"""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from expertmesh.commands.options import Group, Option

if TYPE_CHECKING:
    # Only the types: the messages load protobuf.
    from expertmesh.results import GenerateOptions, Prompt


def text_of(path: str) -> str:
    """The text of a file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise argparse.ArgumentTypeError(f"{path[:80]!r} cannot be read as text") from None


def id_list(text: str) -> list[int]:
    """`1,2,3`; nothing between the commas is an error, no ids at all are the server's to refuse."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a list like 1,2,3") from None


@dataclass(frozen=True, slots=True)
class PromptArguments:
    """One of a text, token ids and a conversation of one message."""

    prompt: Annotated[
        str | None,
        Option("--prompt", one_of="prompt", required=True, metavar="TEXT", help="text to continue"),
    ] = None
    token_ids: Annotated[
        list[int] | None,
        Option(
            "--token-ids",
            one_of="prompt",
            required=True,
            parse=id_list,
            metavar="1,2,3",
            help="token ids to continue",
        ),
    ] = None
    chat: Annotated[
        str | None,
        Option(
            "--chat",
            one_of="prompt",
            required=True,
            metavar="TEXT",
            help="a user's message, for models with a chat template",
        ),
    ] = None

    def given(self) -> "Prompt":
        if self.chat is not None:
            return [{"role": "user", "content": self.chat}]
        return cast("str | list[int]", self.prompt if self.token_ids is None else self.token_ids)


@dataclass(frozen=True, slots=True)
class ShapingArguments:
    """What the output must be, and what may compute it. Fields are keys of GenerateOptions."""

    json_schema: Annotated[
        str | None,
        Option(
            "--json-schema", one_of="kind", parse=text_of, metavar="FILE", help="JSON that fits this schema"
        ),
    ] = None
    json_object: Annotated[bool | None, Option("--json-object", one_of="kind", help="any JSON object")] = None
    regex: Annotated[
        str | None, Option("--regex", one_of="kind", metavar="REGEX", help="text that matches as a whole")
    ] = None
    choices: Annotated[
        tuple[str, ...] | None,
        Option("--choice", one_of="kind", metavar="TEXT", help="one of these; repeat it"),
    ] = None
    grammar: Annotated[
        str | None,
        Option(
            "--grammar",
            one_of="kind",
            parse=text_of,
            metavar="FILE",
            help="text of this grammar (Lark or EBNF)",
        ),
    ] = None
    compact_json: Annotated[bool | None, Option("--compact-json", help="JSON without white space")] = None
    allowed_token_ids: Annotated[
        list[int] | None, Option("--allow-tokens", parse=id_list, metavar="5,6", help="draw no others")
    ] = None
    bad_words: Annotated[
        tuple[str, ...] | None,
        Option(
            "--bad-word", metavar="TEXT", help="tokens of this text never follow each other; may be repeated"
        ),
    ] = None
    allowed_experts: Annotated[
        list[int] | None, Option("--allow-experts", parse=id_list, metavar="0,1", help="use no others")
    ] = None
    denied_experts: Annotated[
        list[int] | None, Option("--deny-experts", parse=id_list, metavar="0,1", help="use these never")
    ] = None
    experts_per_token: Annotated[
        int | None, Option("--experts-per-token", metavar="K", help="instead of the model's own number")
    ] = None


@dataclass(frozen=True, slots=True)
class GenerationArguments:
    """When it ends, and how tokens are drawn. Fields are keys of GenerateOptions; None: not given."""

    max_tokens: Annotated[
        int | None, Option("--max-tokens", metavar="N", help="most tokens to generate (default: what fits)")
    ] = None
    min_tokens: Annotated[
        int | None, Option("--min-tokens", metavar="N", help="tokens before EOS or any stop acts (0)")
    ] = None
    stop_token_ids: Annotated[
        list[int] | None,
        Option("--stop-token-ids", parse=id_list, metavar="1,2", help="end after any of these tokens"),
    ] = None
    stop_sequences: Annotated[
        tuple[str, ...] | None, Option("--stop", metavar="TEXT", help="end before this text; may be repeated")
    ] = None
    include_stop_in_output: Annotated[
        bool | None, Option("--include-stop", help="leave what it stopped at in the output")
    ] = None
    time_limit: Annotated[
        float | None, Option("--time-limit", metavar="S", help="end with what there is after so many seconds")
    ] = None
    ignore_eos: Annotated[bool | None, Option("--ignore-eos", help="go on after the end of the text")] = None
    context_overflow: Annotated[
        Literal["stop", "slide"] | None,
        Option(
            "--context-overflow", help="when the context is full: stop, or slide and see only the last tokens"
        ),
    ] = None
    shaping: Annotated[
        ShapingArguments, Group("what the output must be, and which experts may compute it")
    ] = field(default_factory=ShapingArguments)
    temperature: Annotated[
        float | None, Option("--temperature", metavar="T", help="0 is greedy (default: the model's own)")
    ] = None
    top_k: Annotated[
        int | None, Option("--top-k", metavar="K", help="draw from the K most likely tokens; 0 is off")
    ] = None
    top_p: Annotated[
        float | None,
        Option("--top-p", metavar="P", help="draw from the most likely tokens of mass P; 1 is off"),
    ] = None
    min_p: Annotated[
        float | None,
        Option("--min-p", metavar="P", help="leave out tokens less likely than P times the best"),
    ] = None
    seed: Annotated[
        int | None, Option("--seed", metavar="S", help="fixes the random numbers (default: drawn)")
    ] = None
    presence_penalty: Annotated[
        float | None,
        Option("--presence-penalty", metavar="P", help="subtracted from tokens in the output (0)"),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        Option("--frequency-penalty", metavar="P", help="subtracted for each time in the output (0)"),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Option("--repetition-penalty", metavar="P", help="divides tokens of prompt and output (1)"),
    ] = None
    num_sequences: Annotated[int | None, Option("--n", metavar="N", help="sequences to generate (1)")] = None
    logprobs: Annotated[
        int | None, Option("--logprobs", metavar="N", help="log probabilities, also of the N best (--json)")
    ] = None

    def given(self) -> "GenerateOptions":
        """The rest is left to the model's and the server's defaults."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "shaping"}
        values |= {each.name: getattr(self.shaping, each.name) for each in fields(self.shaping)}
        return cast("GenerateOptions", {name: value for name, value in values.items() if value is not None})
