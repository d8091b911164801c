"""What the arguments of a generation say is what a client's method takes, under the same names."""

from dataclasses import fields

import pytest

from expertmesh import GenerateOptions, Prompt
from expertmesh.commands.client_arguments import ClientArguments
from expertmesh.commands.generation_arguments import GenerationArguments, ShapingArguments
from expertmesh.commands.options import add_options, options_of
from expertmesh.commands.parser import OneLineParser

ADDRESS = "127.0.0.1:1"


def parse(*arguments: str) -> ClientArguments:
    parser = OneLineParser()
    add_options(parser, ClientArguments)
    return options_of(parser.parse_args([ADDRESS, *arguments]), ClientArguments)


def test_every_argument_is_an_option_of_the_client() -> None:
    names = {each.name for cls in (GenerationArguments, ShapingArguments) for each in fields(cls)}
    assert names - {"shaping"} <= GenerateOptions.__annotations__.keys()
    assert len(names) > 20


def test_what_is_not_given_is_not_said() -> None:
    assert parse("--prompt", "x").generation.given() == {}


def test_what_is_given_is_said_in_the_client_s_words() -> None:
    arguments = "--n 2 --stop a --stop b --choice c --ignore-eos --allow-tokens 5,6 --context-overflow slide"
    assert parse("--prompt", "x", *arguments.split()).generation.given() == {
        "num_sequences": 2,
        "stop_sequences": ("a", "b"),
        "choices": ("c",),
        "ignore_eos": True,
        "allowed_token_ids": [5, 6],
        "context_overflow": "slide",
    }


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        (("--prompt", "a"), "a"),
        (("--token-ids", "1,2"), [1, 2]),
        (("--token-ids", ""), []),
        (("--chat", "a"), [{"role": "user", "content": "a"}]),
    ],
)
def test_one_prompt_of_three_kinds(arguments: tuple[str, ...], prompt: Prompt) -> None:
    assert parse(*arguments).prompt.given() == prompt
